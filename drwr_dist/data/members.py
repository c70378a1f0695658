"""The members of a sample: taken out of a shard's bytes, and decoded one by one.

Every failure names shard, key and member. Nothing here unpickles.
"""

from __future__ import annotations

import functools
import io
import json
import re
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drwr_dist.data import occupancy
from drwr_dist.data.faults import camera_fault, mask_fault, points_fault
from drwr_dist.data.npy import decode_npy
from drwr_dist.data.png import decode_png
from drwr_dist.errors import DataError

_VIEW_MEMBER = re.compile(r"(\d+)\.(image|mask)\.png")
_BLOCK = 512  # bytes; tar headers are one, contents are padded to whole ones
_HEADER = struct.Struct("100s24x11s21x107s82xc")  # name, size, all from type to magic, first of the prefix
_PLAIN = b"0" + bytes(100) + b"ustar\0"  # a regular file that is no link


def tar_files(data: bytes) -> list[tuple[str, bytes]]:
    """Return name and content of each regular file of a tar archive without its end.

    Headers are taken apart here where they are plain, which is as our writer makes them and 20 times as fast; tarfile
    reads all others.

    Raises:
        tarfile.TarError, ValueError: not a tar archive, or cut short.
    """
    files = []
    position = 0
    while position < len(data):
        start = position + _BLOCK
        if start > len(data):
            return list(_any_tar_files(data))
        name, octal, kind, prefix = _HEADER.unpack_from(data, position)
        if kind != _PLAIN or prefix != b"\0" or not octal.isdigit() or not name.isascii():
            return list(_any_tar_files(data))
        stop = start + int(octal, 8)
        text = name.rstrip(b"\0").decode()
        if stop > len(data):
            raise tarfile.ReadError(f"{text}: unexpected end of data")
        files.append((text, data[start:stop]))
        position = stop + -stop % _BLOCK
    return files


def _any_tar_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if not member.isreg():
                continue
            content = data[member.offset_data : member.offset_data + member.size]
            if len(content) != member.size:
                raise tarfile.ReadError(f"{member.name}: unexpected end of data")
            yield member.name, content


@functools.lru_cache(maxsize=64)
def view_members(views: int) -> frozenset[str]:
    """Return the names of the members that so many views have."""
    return frozenset(f"{view:02d}.{kind}.png" for view in range(views) for kind in ("image", "mask"))


class MemberReader:
    """Decodes single members; every failure names shard, key and member."""

    def __init__(self, members: Mapping[str, bytes], key: str, shard: str) -> None:
        self._members = members
        self._where = f"{shard}: {key}"

    def _fail(self, member: str, reason: str) -> DataError:
        return DataError(f"{self._where}: {member}: {reason}")

    def _bytes(self, member: str) -> bytes:
        if member not in self._members:
            raise self._fail(member, "missing from the sample")
        return self._members[member]

    def json(self, member: str) -> dict[str, Any]:
        """Return the JSON object that a member holds."""
        try:
            value = json.loads(self._bytes(member))
        except (ValueError, RecursionError) as error:
            raise self._fail(member, f"not JSON ({error})") from error
        if not isinstance(value, dict):
            raise self._fail(member, "not a JSON object")
        return value

    def cameras(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return world_to_camera [V, 4, 4] and focal length [V] of all stored views."""
        member = "cameras.json"
        value = self.json(member)
        try:
            matrices = np.asarray(value["world_to_camera"], dtype=np.float64)
            focal = np.asarray(value["focal_length"], dtype=np.float64)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._fail(member, f"world_to_camera and focal_length must be numbers ({error!r})") from error
        if matrices.ndim != 3 or matrices.shape[1:] != (4, 4) or not len(matrices):
            raise self._fail(member, f"world_to_camera must be [V, 4, 4], got {list(matrices.shape)}")
        if focal.shape not in ((), (len(matrices),)):
            raise self._fail(member, f"focal_length must be a number or [{len(matrices)}], got {list(focal.shape)}")
        if not focal.ndim:
            focal = np.full(len(matrices), focal)
        if reason := camera_fault(matrices, focal):
            raise self._fail(member, reason)
        return matrices, focal

    def check_views(self, count: int, wanted: Sequence[int]) -> None:
        """Check that the sample holds exactly views 0 … count-1, and the wanted ones are among them."""
        for view in wanted:
            if not 0 <= view < count:
                raise DataError(f"{self._where}: view {view} asked for, the sample has views 0 … {count - 1}")
        others = self._members.keys() - view_members(count)
        if len(others) + 2 * count == len(self._members) and not any(map(_VIEW_MEMBER.fullmatch, others)):
            return
        for kind in ("image", "mask"):
            found = {
                int(match[1]) for name in self._members if (match := _VIEW_MEMBER.fullmatch(name)) and match[2] == kind
            }
            for view in range(count):
                if view not in found:
                    raise self._fail(f"{view:02d}.{kind}.png", f"missing; cameras.json describes {count} views")
            if extra := sorted(found - set(range(count))):
                raise self._fail(f"{extra[0]:02d}.{kind}.png", f"has no camera: cameras.json describes {count} views")

    def png(self, member: str, channels: int, side: int | None = None) -> NDArray[np.uint8]:
        """Decode a square 8-bit PNG: [H, H, 3] RGB or [H, H] grey; with `side`, one of that many pixels."""
        try:
            array = decode_png(self._bytes(member), channels)
        except ValueError as error:
            raise self._fail(member, str(error)) from error
        if side is not None and len(array) != side:
            raise self._fail(member, f"wrong size: {len(array)} pixels a side, expected {side}")
        return array

    def mask(self, member: str, side: int) -> NDArray[np.uint8]:
        """Decode a mask [side, side] and check that it has an object and a background."""
        array = self.png(member, 1, side)
        if reason := mask_fault(array):
            raise self._fail(member, reason)
        return array

    def points(self) -> NDArray[np.float32]:
        """Return the ground-truth points [M, 3]."""
        array = self._array("points.npy", points_fault)
        return np.asarray(array, dtype=np.float32)

    def occupancy(self) -> NDArray[np.bool_]:
        """Return the voxels [S, S, S] inside of the object."""
        return occupancy.unpack(self._array(occupancy.MEMBER, occupancy.packed_fault))

    def _array(self, member: str, fault: Callable[[NDArray[Any]], str | None]) -> NDArray[Any]:
        try:
            array = decode_npy(self._bytes(member))
        except DataError:
            raise
        except Exception as error:  # NumPy's reader of headers raises many kinds
            raise self._fail(member, f"not a plain .npy array ({error})") from error
        if reason := fault(array):
            raise self._fail(member, reason)
        return array
