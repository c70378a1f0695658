"""Read TensorFlow checkpoints (V2 bundles) without TensorFlow: `PREFIX.index` and `PREFIX.data-00000-of-00001`.

The index is a sorted table in LevelDB's format: blocks of prefix-compressed keys, a block of pointers to them, and
a footer. Its values are small protocol buffers: the empty key holds a header, every other key is a variable with
its type, shape, place in the data files and checksum. All lengths and offsets are checked before they are used,
every block's and every tensor's CRC-32C is verified, and nothing is ever executed.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources.crc32c import masked_crc32c

MAGIC = 0xDB4775248B80FB57
FOOTER = 48  # bytes
TRAILER = 5  # bytes after each block: compression, CRC
LARGEST_INDEX = 2**28  # bytes; an index of a network is some kilobytes
# TensorFlow's DataType numbers, as far as a network's weights and counters need them.
TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("<f8"), 3: np.dtype("<i4"), 9: np.dtype("<i8")}


@dataclass(frozen=True)
class Variable:
    """Where one variable lies, as the index says."""

    type: int  # TensorFlow's DataType
    shape: tuple[int, ...]
    shard: int  # number of its data file
    offset: int  # bytes
    size: int  # bytes
    checksum: int  # masked CRC-32C of its bytes
    sliced: bool  # stored in parts, as partitioned variables are


@dataclass(frozen=True)
class Checkpoint:
    """The index of a checkpoint; tensors are read when they are asked for."""

    prefix: str
    shards: int
    variables: dict[str, Variable]

    def read(self, name: str) -> NDArray[Any]:
        """Read one variable.

        Raises:
            DataError: there is no such variable, its type is none of float32, float64, int32 and int64, the data
                file is missing or too short, or the bytes do not match their checksum; names file and variable.
        """
        variable = self.variables.get(name)
        if variable is None:
            raise DataError(f"{self.prefix}: has no variable {name}")
        path = Path(f"{self.prefix}.data-{variable.shard:05d}-of-{self.shards:05d}")
        where = f"{path}: {name}"
        dtype = TYPES.get(variable.type)
        if dtype is None or variable.sliced:
            reason = "stored in slices" if variable.sliced else f"of TensorFlow's type {variable.type}"
            raise DataError(f"{where}: {reason}; only whole float32, float64, int32 and int64 variables are read")
        count = 1
        for extent in variable.shape:
            count *= extent
        if count * dtype.itemsize != variable.size or not 0 <= variable.shard < self.shards:
            raise DataError(f"{where}: damaged index: shape {list(variable.shape)} in {variable.size} bytes")
        data = _read_range(path, variable.offset, variable.size, where)
        if masked_crc32c(data) != variable.checksum:
            raise DataError(f"{where}: damaged: its bytes do not match their checksum; fetch the checkpoint again")
        return np.frombuffer(data, dtype=dtype).reshape(variable.shape)


def open_checkpoint(path: str) -> Checkpoint:
    """Read the index of a checkpoint.

    Args:
        path: the prefix that TensorFlow's saver was given (`…/model-100000`), its `.index` file, or a folder with a
            `checkpoint` file that names the latest one.

    Raises:
        UsageError: there is no checkpoint.
        DataError: the index is damaged, or of another format; names the file.
    """
    prefix = _prefix(path)
    index = Path(f"{prefix}.index")
    try:
        if index.stat().st_size > LARGEST_INDEX:
            raise DataError(f"{index}: {index.stat().st_size} bytes are no index of a checkpoint")
        data = index.read_bytes()
    except OSError as error:
        raise UsageError(
            f"init=tf_checkpoint:{path}: no checkpoint there ({index}: {error.strerror}); give the prefix that "
            "PREFIX.index and PREFIX.data-00000-of-00001 begin with, or the folder of its `checkpoint` file"
        ) from error
    try:
        table = dict(_table(data))
        shards = _header(table.pop(b"", b""))
        variables = {key.decode(): _variable(value) for key, value in table.items()}
    except (ValueError, IndexError, struct.error) as error:
        raise DataError(f"{index}: not the index of a TensorFlow V2 checkpoint, or damaged: {error}") from error
    return Checkpoint(prefix, shards, variables)


def _prefix(path: str) -> str:
    state = Path(path) / "checkpoint"
    if state.is_file():
        text = state.read_text(encoding="utf-8", errors="replace")
        named = re.search(r'^model_checkpoint_path: "([^"]+)"', text, re.MULTILINE)
        if named is None:
            raise UsageError(f"init=tf_checkpoint:{path}: {state} names no checkpoint; give the prefix itself")
        found = Path(named[1])
        # Checkpoints are moved: an absolute path of the machine that wrote it counts only where it still exists.
        return str(found if found.is_absolute() and Path(f"{found}.index").exists() else Path(path) / found.name)
    return path.removesuffix(".index")


def _read_range(path: Path, offset: int, size: int, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            if offset < 0 or offset + size > file.tell():
                raise DataError(f"{where}: truncated: {file.tell()} bytes, {offset + size} are needed")
            file.seek(offset)
            return file.read(size)
    except OSError as error:
        raise DataError(f"{where}: can't be read ({error.strerror}); the checkpoint's files belong together") from error


# --- the table ------------------------------------------------------------------------------------------------


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table. Raises ValueError or IndexError where it is damaged."""
    if len(data) < FOOTER or struct.unpack_from("<Q", data, len(data) - 8)[0] != MAGIC:
        raise ValueError("the file does not end as such a table does (is it cut short?)")
    footer = _Reader(data[-FOOTER:])
    footer.varint(), footer.varint()  # the block of metadata, which is empty
    for _, handle in _entries(_block(data, footer.varint(), footer.varint())):
        pointer = _Reader(handle)
        yield from _entries(_block(data, pointer.varint(), pointer.varint()))


def _block(data: bytes, offset: int, size: int) -> bytes:
    end = offset + size
    if end + TRAILER > len(data) - FOOTER:
        raise ValueError(f"a block at byte {offset} reaches beyond the end")
    (checksum,) = struct.unpack_from("<I", data, end + 1)
    if masked_crc32c(data[offset : end + 1]) != checksum:
        raise ValueError(f"the block at byte {offset} does not match its checksum")
    if data[end] != 0:
        raise ValueError(f"the block at byte {offset} is compressed, which TensorFlow's saver does not do")
    return data[offset:end]


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise ValueError("a block has more restarts than bytes")
    reader, key = _Reader(block[:end]), b""
    while not reader.done:
        shared, fresh, length = reader.varint(), reader.varint(), reader.varint()
        if shared > len(key):
            raise ValueError("a key shares more bytes with the one before it than that has")
        key = key[:shared] + reader.take(fresh)
        yield key, reader.take(length)


class _Reader:
    """Takes numbers and bytes from the front of a buffer; never beyond its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def done(self) -> bool:
        return self._position >= len(self._data)

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise ValueError("a number has more than ten bytes")

    def take(self, count: int) -> bytes:
        if self._position + count > len(self._data):
            raise ValueError("an entry reaches beyond its block")
        self._position += count
        return self._data[self._position - count : self._position]


# --- the protocol buffers -------------------------------------------------------------------------------------


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (field number, value) of a protocol buffer: numbers for varints and fixed32, bytes for the others."""
    reader = _Reader(message)
    while not reader.done:
        number, kind = divmod(reader.varint(), 8)
        if kind == 0:
            yield number, reader.varint()
        elif kind == 2:
            yield number, reader.take(reader.varint())
        elif kind == 5:
            yield number, struct.unpack("<I", reader.take(4))[0]
        elif kind == 1:
            yield number, reader.take(8)
        else:
            raise ValueError(f"field {number} has the unknown wire type {kind}")


def _header(message: bytes) -> int:
    """Return the number of data files (BundleHeaderProto)."""
    fields = dict(_fields(message))
    shards, big_endian = fields.get(1, 0), fields.get(2, 0)
    if not isinstance(shards, int) or not 1 <= shards <= 99_999:
        raise ValueError("it has no header")
    if big_endian:
        raise ValueError("it was written on a big-endian machine")
    return shards


def _variable(message: bytes) -> Variable:
    """Parse a BundleEntryProto."""
    numbers = {1: 0, 3: 0, 4: 0, 5: 0, 6: 0}
    shape: tuple[int, ...] = ()
    sliced = False
    for number, value in _fields(message):
        if isinstance(value, int) and number in numbers:
            numbers[number] = value
        elif isinstance(value, bytes) and number == 2:
            shape = _shape(value)
        elif number == 7:
            sliced = True
    return Variable(numbers[1], shape, numbers[3], numbers[4], numbers[5], numbers[6], sliced)


def _shape(message: bytes) -> tuple[int, ...]:
    """Parse a TensorShapeProto."""
    extents = []
    for number, value in _fields(message):
        if number == 2 and isinstance(value, bytes):
            extent = dict(_fields(value)).get(1, 0)
            if not isinstance(extent, int) or extent >= 2**31:
                raise ValueError("a shape is not one")
            extents.append(extent)
    return tuple(extents)
