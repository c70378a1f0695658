"""One object as it lies in a shard: what its members are, and every way in which they can be wrong.

The members of the sample `<category>/<object id>` are `00.image.png`, `00.mask.png`, `01.image.png`, …,
`cameras.json`, `meta.json` and, where ground truth is known, `points.npy`; `<view>.depth.png` where it was asked for,
`occupancy.npy` where the mesh is watertight.
Nothing here unpickles.
"""

from __future__ import annotations

import functools
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.data import occupancy
from drwr_dist.data.faults import camera_fault, mask_fault, points_fault
from drwr_dist.data.members import MemberReader, tar_files
from drwr_dist.data.npy import encode_npy
from drwr_dist.errors import DataError

COMPRESSIONS = {  # of the stored images; fixed ones, so that the same pixels give the same bytes
    "small": (cv2.IMWRITE_PNG_COMPRESSION, 9, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
    "quick": (cv2.IMWRITE_PNG_COMPRESSION, 6, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE),  # for renders
}


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
    views, height, width = masks.shape
    levels = [background] if isinstance(background, int | float) else list(background)
    planes = np.empty((views, 3, height, width), dtype=np.uint8)
    for image, alpha, target in zip(images, masks, planes, strict=True):
        cv2.split(image, list(target))
        under = [cv2.LUT(alpha, _under(level)) for level in levels]
        for channel, plane in enumerate(target):
            product = cv2.multiply(plane, alpha, scale=1 / 255, dtype=cv2.CV_32F)
            cv2.add(product, under[channel % len(under)], plane, dtype=cv2.CV_8U)
    return planes


@functools.lru_cache(maxsize=8)
def _under(level: float) -> NDArray[np.float32]:
    """Return what a background of a level in [0, 1] adds at each alpha: float32 [256], in 0 … 255."""
    alpha: NDArray[np.float64] = np.arange(256, dtype=np.float64)
    return (level * (255.0 - alpha)).astype(np.float32)


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
    where = f"{shard}: {key}" if key else shard
    samples: dict[str, dict[str, bytes]] = {}
    try:
        for name, content in tar_files(data):
            start = name.rfind("/") + 1
            base, dot, member = name[start:].partition(".")
            if not (base and dot):
                continue  # no member of a sample, as webdataset has it
            members = samples.setdefault(name[:start] + base, {})
            if (member := member.lower()) in members:
                raise tarfile.ReadError(f"{name} is there twice")
            members[member] = content
    except Exception as error:  # tarfile raises many kinds; all of them mean a damaged shard
        raise DataError(
            f"{where}: damaged: not a readable tar stream ({error.args[0] if error.args else error})"
        ) from error
    if len(samples) != 1:
        raise DataError(f"{where}: damaged: the byte range holds {len(samples)} samples, expected 1")
    ((found, members),) = samples.items()
    if key is not None and found != key:
        raise DataError(f"{where}: damaged: the byte range holds {found!r}")
    return members


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
    read = MemberReader(members, key, shard)
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
