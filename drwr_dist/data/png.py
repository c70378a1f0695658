"""The PNG files of a sample: what can be wrong with their bytes, and their pixels."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
from kornia_rs.io import decode_image_png_u8
from numpy.typing import NDArray

MAX_SIDE = 4096  # pixels; a larger image is refused before it is decoded
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_END = b"\0\0\0\0IEND\xaeB`\x82"  # the last chunk
_UNREADABLE = "damaged: the PNG can't be decoded"


def decode_png(data: bytes, channels: int) -> NDArray[np.uint8]:
    """Decode a square 8-bit PNG: [H, H, 3] RGB or [H, H] grey.

    Raises:
        ValueError: says what is wrong, as `png_fault` does.
    """
    if reason := _header_fault(data, channels, 8):
        raise ValueError(reason)
    if data[28]:  # interlaced: kornia_rs is several times as fast, but does not read these
        return _decode_interlaced(data, channels)
    side = int.from_bytes(data[16:20])
    try:  # checks the checksums of all chunks of pixels
        pixels = decode_image_png_u8(data, (side, side), "rgb" if channels == 3 else "mono")
    except Exception as error:  # the binding raises nothing more specific
        raise ValueError(_chunk_fault(data) or _UNREADABLE) from error
    if not (data.endswith(_END) and data.startswith(b"IDAT", 37)) and (reason := _chunk_fault(data)):
        raise ValueError(reason)  # other chunks or bytes than those of the pixels
    return np.asarray(pixels if channels == 3 else pixels[..., 0], dtype=np.uint8)


def _decode_interlaced(data: bytes, channels: int) -> NDArray[np.uint8]:
    if reason := _chunk_fault(data):
        raise ValueError(reason)
    kind = cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE
    array = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), kind)
    if array is None:
        raise ValueError(_UNREADABLE)
    return np.ascontiguousarray(array[..., ::-1] if channels == 3 else array)


def png_fault(data: bytes, channels: int, bits: int = 8) -> str | None:
    """Say what is wrong with a square PNG without decoding it, or return None; checks every chunk's CRC.

    Args:
        data: the whole file.
        channels: 3 for RGB, 1 for grey.
        bits: per channel.
    """
    return _header_fault(data, channels, bits) or _chunk_fault(data)


def _header_fault(data: bytes, channels: int, bits: int) -> str | None:
    if not data.startswith(_PNG_SIGNATURE):
        return "not a PNG"
    if data[12:16] != b"IHDR" or len(data) < 33:
        return "damaged: the PNG has no header chunk"
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    depth, colour = data[24], data[25]
    if width != height or not 0 < width <= MAX_SIDE:
        return f"wrong size: {width} × {height} pixels; it must be square, at most {MAX_SIDE}"
    if (depth, colour) != (bits, 2 if channels == 3 else 0):
        kind = f"{'an 8' if bits == 8 else 'a 16'}-bit {'RGB' if channels == 3 else 'grey'}"
        return f"not {kind} PNG (bit depth {depth}, colour type {colour})"
    return None


def _chunk_fault(data: bytes) -> str | None:
    position = len(_PNG_SIGNATURE)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4])
        body = position + 4
        end = body + 4 + length
        if end + 4 > len(data) or zlib.crc32(data[body:end]) != int.from_bytes(data[end : end + 4]):
            return f"damaged: the PNG's data don't match their checksum at byte {position}"
        if data[body : body + 4] == b"IEND":
            return None
        position = end + 4
    return "damaged: the PNG is cut short"
