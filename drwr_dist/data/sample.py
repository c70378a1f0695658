"""One object as it lies in a shard: what its members are, and every way in which they can be wrong.

The members of the sample `<category>/<object id>` are `00.image.png`, `00.mask.png`, `01.image.png`, …,
`cameras.json`, `meta.json` and, where ground truth is known, `points.npy`; `<view>.depth.png` where it was asked for,
`occupancy.npy` where the mesh is watertight.
Nothing here unpickles.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.data import occupancy
from drwr_dist.data.npy import decode_npy, encode_npy
from drwr_dist.data.png import decode_png, png_fault
from drwr_dist.errors import DataError

FOREGROUND = 153  # a pixel belongs to the object where its alpha is at least 153 of 255, as in the released records
COMPRESSIONS = {  # of the stored images; fixed ones, so that the same pixels give the same bytes
    "small": (cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
    "quick": (cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),  # for renders
}
_VIEW_MEMBER = re.compile(r"(\d+)\.(image|mask)\.png")


@dataclass
class ObjectSample:
    """One object with V posed views. RGB is not premultiplied by alpha, and is 0 where alpha is 0."""

    key: str  # <category>/<object id>
    images: NDArray[np.uint8]  # [V, H, W, 3] RGB
    masks: NDArray[np.uint8]  # [V, H, W] alpha: 0 background … 255 object
    world_to_camera: NDArray[np.float64]  # [V, 4, 4], object frame to OpenCV camera frame
    focal_length: NDArray[np.float64]  # [V], in frame widths
    points: NDArray[np.float32] | None = None  # [M, 3] ground truth in the object frame, where known
    meta: dict[str, Any] = field(default_factory=dict)
    occupancy: NDArray[np.bool_] | None = None  # [S, S, S] voxels inside of the object, where known
    depths: NDArray[np.uint16] | None = None  # [V, H, W] levels (see `drwr_dist.data.depth`); written, never decoded


def composite(
    images: NDArray[np.uint8], masks: NDArray[np.uint8], background: float | Sequence[float]
) -> NDArray[np.uint8]:
    """Lay RGB over a background: image · alpha + background · (1 - alpha), rounded.

    Args:
        images: [..., H, W, 3] RGB, not premultiplied.
        masks: [..., H, W] alpha, 0 … 255.
        background: one grey level or three RGB levels in [0, 1]; 1 is white.

    Returns:
        [..., H, W, 3] uint8.
    """
    planes = composite_planes(images.reshape(-1, *images.shape[-3:]), masks.reshape(-1, *masks.shape[-2:]), background)
    return np.ascontiguousarray(np.moveaxis(planes, 1, -1)).reshape(images.shape)


def composite_planes(
    images: NDArray[np.uint8], masks: NDArray[np.uint8], background: float | Sequence[float]
) -> NDArray[np.uint8]:
    """Lay RGB [V, H, W, 3] over a background as `composite` does, and return its planes: [V, 3, H, W] uint8."""
    ground = np.broadcast_to(np.asarray(background, dtype=np.float32) * 255.0, 3)
    planes = np.empty((len(images), 3, *images.shape[1:3]), dtype=np.uint8)
    for image, target in zip(images, planes, strict=True):
        cv2.split(image, list(target))
    empty, edge = masks == 0, (masks != 0) & (masks != 255)
    alpha = masks[edge].astype(np.float32) / 255.0  # few pixels: the others are the image's or the background's
    for channel, level in enumerate(ground):
        plane = planes[:, channel]
        np.copyto(plane, np.uint8(np.rint(level)), where=empty)
        plane[edge] = np.rint(plane[edge] * alpha + level * (1.0 - alpha)).astype(np.uint8)
    return planes


# --- writing --------------------------------------------------------------------------------------------------


def encode_sample(sample: ObjectSample, compression: str = "small") -> dict[str, bytes]:
    """Encode one object as its members, in the order in which a shard holds them (ground truth last).

    Args:
        sample: the object.
        compression: of the PNGs, one of COMPRESSIONS; quick is as small for flat renders, larger for photographs.

    Returns:
        Member name without the key (such as `00.image.png`) → bytes; the same sample always gives the same bytes.

    Raises:
        DataError: an array has the wrong shape or type, a camera is not rigid, or a mask is empty or full.
    """
    views = _check_arrays(sample)
    members: dict[str, bytes] = {}
    for view in range(views):
        members[f"{view:02d}.image.png"] = encode_png(sample.images[view][..., ::-1], compression)
        members[f"{view:02d}.mask.png"] = encode_png(sample.masks[view], compression)
        if sample.depths is not None:
            members[f"{view:02d}.depth.png"] = encode_png(sample.depths[view], compression)
    cameras = {
        "world_to_camera": sample.world_to_camera.tolist(),
        "focal_length": sample.focal_length.tolist(),
    }
    members["cameras.json"] = _encode_json(cameras)
    members["meta.json"] = _encode_json(sample.meta)
    if sample.points is not None:
        members["points.npy"] = encode_npy(sample.points.astype(np.float16))
    if sample.occupancy is not None:
        members[occupancy.MEMBER] = encode_npy(occupancy.pack(sample.occupancy))
    return members


def _check_arrays(sample: ObjectSample) -> int:
    """Check one object before it is written and return its number of views."""
    views = len(sample.images)
    side = sample.images.shape[1] if sample.images.ndim == 4 else 0
    expected: dict[str, tuple[NDArray[Any], tuple[int, ...]]] = {
        "images": (sample.images, (views, side, side, 3)),
        "masks": (sample.masks, (views, side, side)),
        "world_to_camera": (sample.world_to_camera, (views, 4, 4)),
        "focal_length": (sample.focal_length, (views,)),
    }
    for name, (array, shape) in expected.items():
        if not views or array.shape != shape:
            raise DataError(f"{sample.key}: {name} must be {shape} (square, at least one view), got {array.shape}")
    for name in ("images", "masks"):
        if expected[name][0].dtype != np.uint8:
            raise DataError(f"{sample.key}: {name} must be uint8, got {expected[name][0].dtype}")
    if sample.depths is not None and (sample.depths.shape != sample.masks.shape or sample.depths.dtype != np.uint16):
        raise DataError(f"{sample.key}: depths must be uint16 {sample.masks.shape}, got {sample.depths.shape}")
    for view in range(views):
        if reason := mask_fault(sample.masks[view]):
            raise DataError(f"{sample.key}: view {view:02d}: {reason}")
    if reason := camera_fault(sample.world_to_camera, sample.focal_length):
        raise DataError(f"{sample.key}: {reason}")
    if sample.points is not None and (reason := points_fault(sample.points)):
        raise DataError(f"{sample.key}: {reason}")
    if sample.occupancy is not None and (reason := occupancy.packed_fault(occupancy.pack(sample.occupancy))):
        raise DataError(f"{sample.key}: {reason}")
    return views


def encode_png(array: NDArray[np.uint8] | NDArray[np.uint16], compression: str) -> bytes:
    """Encode [H, W] or BGR [H, W, 3]; the same bytes every time."""
    ok, data = cv2.imencode(".png", np.ascontiguousarray(array), COMPRESSIONS[compression])
    if not ok:
        raise DataError(f"OpenCV could not encode an array of shape {array.shape} as PNG")
    return bytes(data.tobytes())


def _encode_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False).encode("utf-8") + b"\n"


# --- what can be wrong ----------------------------------------------------------------------------------------


def mask_fault(mask: NDArray[np.uint8]) -> str | None:
    """Say what is wrong with a mask [H, W] as a training target, or return None."""
    if int(mask.max()) < FOREGROUND:
        return "the mask is empty: no pixel belongs to the object; remove the view or render it again"
    if int(mask.min()) >= FOREGROUND:
        return "the mask is full: no pixel is background; move the camera back or store the alpha channel"
    return None


def camera_fault(world_to_camera: NDArray[np.float64], focal_length: NDArray[np.float64]) -> str | None:
    """Say what is wrong with cameras [V, 4, 4] and focal lengths [V], or return None."""
    if _plainly_sound(world_to_camera, focal_length):
        return None
    for view, (matrix, focal) in enumerate(zip(world_to_camera, focal_length, strict=True)):
        if not (np.isfinite(matrix).all() and math.isfinite(focal)):
            return f"the camera of view {view:02d} is not finite"
        if focal <= 0:
            return f"the focal length of view {view:02d} is {focal:g}; it must be positive (frame widths)"
        if not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-8):
            return f"the last row of the camera of view {view:02d} is {matrix[3].tolist()}, not [0, 0, 0, 1]"
        rotation = matrix[:3, :3]
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4) or np.linalg.det(rotation) < 0:
            return f"the camera of view {view:02d} is not rigid: its rotation is not orthonormal and right-handed"
    return None


def _plainly_sound(world_to_camera: NDArray[np.float64], focal_length: NDArray[np.float64]) -> bool:
    """Say whether all cameras pass at once, by somewhat stricter limits: the usual case, without a loop."""
    if not (np.isfinite(world_to_camera).all() and (focal_length > 0).all() and np.isfinite(focal_length).all()):
        return False
    rotation = world_to_camera[:, :3, :3]
    rigid = np.abs(rotation @ rotation.mT - np.eye(3)).max() <= 1e-4 and (np.linalg.det(rotation) >= 0).all()
    return bool(rigid and np.abs(world_to_camera[:, 3] - (0, 0, 0, 1)).max() <= 1e-8)


def points_fault(points: NDArray[Any]) -> str | None:
    """Say what is wrong with ground-truth points [M, 3], or return None."""
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        return f"ground-truth points must be [M, 3] with M ≥ 1, got {list(points.shape)}"
    if points.dtype.kind != "f":
        return f"ground-truth points must be floating point, got {points.dtype}"
    if not np.isfinite(points).all():
        return "ground-truth points are not finite"
    return None


# --- reading --------------------------------------------------------------------------------------------------


def split_members(data: bytes, *, key: str | None = None, shard: str = "") -> dict[str, bytes]:
    """Split the byte range of one sample into its members, grouped as webdataset does.

    Args:
        data: the sample's bytes in the shard, from its first tar header to the next sample's.
        key: the key that the index gives; None takes whatever the bytes hold.
        shard: named in errors.

    Returns:
        Member name without the key (such as `00.image.png`) → bytes.

    Raises:
        DataError: the bytes are no tar stream, or hold no sample, several, or another one.
    """
    from webdataset import tariterators  # brings torch, which the processes that render don't need

    where = f"{shard}: {key}" if key else shard
    try:
        samples = list(tariterators.group_by_keys(_tar_members(data)))
    except Exception as error:  # tarfile and webdataset raise many kinds; all of them mean a damaged shard
        raise DataError(
            f"{where}: damaged: not a readable tar stream ({error.args[0] if error.args else error})"
        ) from error
    if len(samples) != 1:
        raise DataError(f"{where}: damaged: the byte range holds {len(samples)} samples, expected 1")
    sample = samples[0]
    if key is not None and sample["__key__"] != key:
        raise DataError(f"{where}: damaged: the byte range holds {sample['__key__']!r}")
    return {name: value for name, value in sample.items() if not name.startswith("__")}


def _tar_members(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield name and content of each file, as webdataset's own reader, which reads a stream and is slower, does."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if not member.isreg():
                continue
            content = data[member.offset_data : member.offset_data + member.size]
            if len(content) != member.size:
                raise tarfile.ReadError(f"{member.name}: unexpected end of data")
            yield {"fname": member.name, "data": content, "__url__": ""}


def decode_sample(
    members: Mapping[str, bytes],
    *,
    key: str,
    shard: str,
    views: Sequence[int] | None = None,
    with_points: bool = False,
    background: float | Sequence[float] | None = None,
) -> ObjectSample:
    """Decode the views asked for, and check all that is read.

    Args:
        members: as `split_members` gives them.
        key: the sample's key, named in errors.
        shard: the shard, named in errors.
        views: numbers of the views to decode, in this order; None decodes all. All results have V = len(views).
        with_points: decode `points.npy` and `occupancy.npy` too, where the sample has them.
        background: grey level (or three levels) in [0, 1] under the images (see `composite`); None leaves RGB as
            stored.

    Raises:
        DataError: names shard, key, member and reason.
    """
    read = _MemberReader(members, key, shard)
    world_to_camera, focal_length = read.cameras()
    wanted = list(range(len(world_to_camera))) if views is None else list(views)
    read.check_views(len(world_to_camera), wanted)
    images = np.stack([read.png(f"{view:02d}.image.png", channels=3) for view in wanted])
    masks = np.stack([read.mask(f"{view:02d}.mask.png", images.shape[1]) for view in wanted])
    return ObjectSample(
        key=key,
        images=images if background is None else composite(images, masks, background),
        masks=masks,
        world_to_camera=world_to_camera[wanted],
        focal_length=focal_length[wanted],
        points=read.points() if with_points and "points.npy" in members else None,
        occupancy=read.occupancy() if with_points and occupancy.MEMBER in members else None,
        meta=read.json("meta.json"),
    )


class _MemberReader:
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
        focal = np.array(np.broadcast_to(focal, len(matrices)))
        if reason := camera_fault(matrices, focal):
            raise self._fail(member, reason)
        return matrices, focal

    def check_views(self, count: int, wanted: Sequence[int]) -> None:
        """Check that the sample holds exactly views 0 … count-1, and the wanted ones are among them."""
        for kind in ("image", "mask"):
            found = {
                int(match[1]) for name in self._members if (match := _VIEW_MEMBER.fullmatch(name)) and match[2] == kind
            }
            for view in range(count):
                if view not in found:
                    raise self._fail(f"{view:02d}.{kind}.png", f"missing; cameras.json describes {count} views")
            if extra := sorted(found - set(range(count))):
                raise self._fail(f"{extra[0]:02d}.{kind}.png", f"has no camera: cameras.json describes {count} views")
        for view in wanted:
            if not 0 <= view < count:
                raise DataError(f"{self._where}: view {view} asked for, the sample has views 0 … {count - 1}")

    def png(self, member: str, channels: int) -> NDArray[np.uint8]:
        """Decode a square 8-bit PNG: [H, H, 3] RGB or [H, H] grey."""
        data = self._bytes(member)
        if reason := png_fault(data, channels):
            raise self._fail(member, reason)
        array = decode_png(data, channels)
        if array is None:
            raise self._fail(member, "damaged: the PNG can't be decoded")
        return array

    def mask(self, member: str, side: int) -> NDArray[np.uint8]:
        array = self.png(member, channels=1)
        if len(array) != side:
            raise self._fail(member, f"wrong size: {len(array)} pixels a side, the image has {side}")
        if reason := mask_fault(array):
            raise self._fail(member, reason)
        return array

    def points(self) -> NDArray[np.float32]:
        array = self._array("points.npy", points_fault)
        return np.asarray(array, dtype=np.float32)

    def occupancy(self) -> NDArray[np.bool_]:
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
