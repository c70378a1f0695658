"""TFRecord files without TensorFlow: records out of their frames, gzip or not, and examples out of records.

A frame is the length (8 bytes, little-endian), the masked CRC-32C of those 8 bytes, the record, and the record's
masked CRC-32C. A record is a serialised `tf.train.Example`: a map from names to lists of bytes, floats or integers.
"""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.sources.crc32c import masked_crc32c

_GZIP = b"\x1f\x8b\x08"
_HEADER, _FOOTER = 12, 4  # bytes


class BrokenFrameError(DataError):
    """The frames can't be followed any further: what comes after is lost."""


def read_records(path: Path, max_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield each record and its stored checksum (4 bytes); the record itself is checked by `check_record`.

    Args:
        path: of the file; gzip is recognised by its content.
        max_bytes: a longer record is refused before it is read.

    Raises:
        BrokenFrameError: names file and record: the file is cut short, a length is damaged, or gzip is.
        DataError: the file can't be opened.
    """
    number = 0
    try:
        with path.open("rb") as raw:
            start = raw.read(_HEADER)
            raw.seek(0)
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw) if _is_gzip(start) else raw)
            while header := _read(stream, _HEADER):
                yield _read_rest(stream, header, max_bytes)
                number += 1
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BrokenFrameError(f"{path}: record {number}: damaged gzip data ({error})") from error
    except BrokenFrameError as error:
        raise BrokenFrameError(f"{path}: record {number}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def _is_gzip(start: bytes) -> bool:
    """Say whether a file that starts so is gzip; a plain record of 559903 bytes starts the same, but has its CRC."""
    return start.startswith(_GZIP) and not _sound(start[:8], start[8:])


def _sound(data: bytes, stored: bytes) -> bool:
    return masked_crc32c(data) == int.from_bytes(stored, "little")


def _read(stream: IO[bytes], size: int) -> bytes:
    """Read so many bytes, or nothing at the end of the file."""
    data = stream.read(size)
    if data and len(data) < size:
        raise BrokenFrameError(f"the file is cut short: {len(data)} of {size} bytes")
    return data


def _read_rest(stream: IO[bytes], header: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    if not _sound(header[:8], header[8:]):
        raise BrokenFrameError("the length doesn't match its checksum; not a TFRecord file, or a damaged one")
    length = int.from_bytes(header[:8], "little")
    if length > max_bytes:
        raise BrokenFrameError(f"{length} bytes, more than the {max_bytes} allowed; raise max_megabytes")
    data = _read(stream, length + _FOOTER)
    if not data:
        raise BrokenFrameError("the file is cut short after the record's length")
    return data[:length], data[length:]


def check_record(record: bytes, stored: bytes) -> None:
    """Raise DataError unless a record matches its checksum."""
    if not _sound(record, stored):
        raise DataError("the record doesn't match its checksum")


def parse_example(record: bytes) -> dict[str, Any]:
    """Decode a `tf.train.Example`.

    Returns:
        Feature name → list of bytes, float32 array or int64 array.

    Raises:
        DataError: the bytes are no such message.
    """
    from google.protobuf.message import DecodeError

    try:
        example = _example_class().FromString(record)
    except DecodeError as error:
        raise DataError(f"not a tf.train.Example ({error})") from error
    return {name: _values(feature) for name, feature in example.features.feature.items()}


def _values(feature: Any) -> list[bytes] | NDArray[np.float32] | NDArray[np.int64]:
    kind = feature.WhichOneof("kind")
    if kind == "float_list":
        return np.array(feature.float_list.value, dtype=np.float32)
    if kind == "int64_list":
        return np.array(feature.int64_list.value, dtype=np.int64)
    return list(feature.bytes_list.value)


@functools.cache
def _example_class() -> Any:
    """Build the message class of `tf.train.Example`, field by field, in a pool of its own."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="drwr_dist/example.proto", package="drwr_dist", syntax="proto3")
    for name, kind in (
        ("BytesList", kinds.TYPE_BYTES),
        ("FloatList", kinds.TYPE_FLOAT),
        ("Int64List", kinds.TYPE_INT64),
    ):
        values = file.message_type.add(name=name)
        values.field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("Bytes", "Float", "Int64"), start=1):
        _add(feature, f"{name.lower()}_list", number, f"{name}List", oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    _add(entry, "value", 2, "Feature")
    _add(features, "feature", 1, "Features.FeatureEntry", label=kinds.LABEL_REPEATED)
    _add(file.message_type.add(name="Example"), "features", 1, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("drwr_dist.Example"))


def _add(message: Any, name: str, number: int, kind: str, **more: Any) -> None:
    """Add a field that holds another message."""
    from google.protobuf.descriptor_pb2 import FieldDescriptorProto

    more.setdefault("label", FieldDescriptorProto.LABEL_OPTIONAL)
    kind_name = f".drwr_dist.{kind}"
    message.field.add(name=name, number=number, type=FieldDescriptorProto.TYPE_MESSAGE, type_name=kind_name, **more)
