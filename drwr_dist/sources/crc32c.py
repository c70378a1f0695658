"""CRC-32C (Castagnoli), as TFRecord files carry it, fast enough for megabytes without a compiled module.

A CRC is linear over GF(2), so a long message is cut into lanes of equal length that numpy advances side by side, a
byte of every lane at a time; neighbouring lanes are then joined in pairs: the left one is moved on by as many zero
bytes as the right one is long, which is a 32 × 32 bit matrix, and added (exclusive or) to the right one.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

_POLYNOMIAL = 0x82F63B78  # reflected
_LANE = 1024  # bytes of a lane
_MASK_DELTA = 0xA282EAD8  # TFRecord's masking of stored CRCs


def crc32c(data: bytes) -> int:
    """Return the CRC-32C of bytes."""
    whole = len(data) // _LANE
    lanes = 1 << (whole.bit_length() - 1) if whole else 0  # a power of two, so that they join in pairs
    state, position = 0xFFFFFFFF, 0
    while lanes:
        block = data[position : position + lanes * _LANE]
        state = _shift(state, len(block)) ^ _lanes(block, lanes)
        position += len(block)
        whole = (len(data) - position) // _LANE
        lanes = 1 << (whole.bit_length() - 1) if whole else 0
    table = _table().tolist()
    for byte in data[position:]:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def masked_crc32c(data: bytes) -> int:
    """Return the CRC-32C as TFRecord files store it: rotated right by 15 bits, plus a constant."""
    value = crc32c(data)
    return (((value >> 15) | (value << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def _lanes(data: bytes, lanes: int) -> int:
    """Advance a zero state over lanes · _LANE bytes."""
    table = _table()
    columns = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(lanes, _LANE).T)
    state = np.zeros(lanes, np.uint32)
    for column in columns:
        state = table[(state ^ column) & np.uint32(0xFF)] ^ (state >> np.uint32(8))
    length = _LANE
    while len(state) > 1:
        state = _apply(_zeros(length), state[0::2]) ^ state[1::2]
        length *= 2
    return int(state[0])


def _shift(state: int, length: int) -> int:
    """Advance a state over so many zero bytes; the length is _LANE times a power of two."""
    return int(_apply(_zeros(length), np.array([state], np.uint32))[0])


@functools.cache
def _table() -> NDArray[np.uint32]:
    """Return what each value of the low byte turns into, [256]."""
    state = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        state = np.where(state & 1, (state >> 1) ^ np.uint32(_POLYNOMIAL), state >> 1)
    return state


@functools.cache
def _zeros(length: int) -> NDArray[np.uint32]:
    """Return the operator "advance over `length` zero bytes" as a table [4, 256]: one row per byte of the state."""
    if length == 1:
        columns = [1 << bit for bit in range(32)]
        table = _table().tolist()
        images = [table[column & 0xFF] ^ (column >> 8) for column in columns]
    else:
        half = _zeros(length // 2)
        once = _apply(half, np.uint32(1) << np.arange(32, dtype=np.uint32))
        images = _apply(half, once).tolist()
    result = np.zeros((4, 256), np.uint32)
    for byte in range(4):
        for bit in range(8):
            result[byte, (np.arange(256) >> bit & 1) == 1] ^= np.uint32(images[8 * byte + bit])
    return result


def _apply(operator: NDArray[np.uint32], states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    parts = [operator[byte, (states >> np.uint32(8 * byte)) & np.uint32(0xFF)] for byte in range(4)]
    return np.asarray(parts[0] ^ parts[1] ^ parts[2] ^ parts[3])
