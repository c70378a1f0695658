"""Check a whole dataset: every file, every sample, every view; damage that tar readers pass over in silence too.

webdataset stops without a word at a shard that was cut between two members, or whose tar header is corrupt. Here
each shard is compared with its size and SHA-256 in the index, each sample with its checksum, and all samples are
decoded and looked at.
"""

from __future__ import annotations

import hashlib
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.depth import depth_findings
from drwr_dist.data.faults import FOREGROUND
from drwr_dist.data.index import DatasetIndex, Shard, load_index, read_sample, read_shard
from drwr_dist.data.sample import ObjectSample, decode_sample, split_members
from drwr_dist.errors import DataError

NEAR = 0.01  # a point this close to the camera plane, or behind it, is not in the picture
MARGIN = 1.5  # pixels: half a pixel's diagonal, rounding of the stored points and antialiasing
INSIDE_SHARE = 0.95  # of the ground truth must project onto the mask, or the camera is not this view's


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong."""

    shard: str  # or index.json
    key: str  # of the sample; empty: the shard as a whole
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.shard, self.key, self.reason) if part)


Progress = Callable[[int, int], None]  # (samples checked, samples in all)


def verify_dataset(root: str, progress: Progress | None = None) -> list[Finding]:
    """Check everything that an index promises.

    Args:
        root: a folder or URL.
        progress: called after each sample.

    Returns:
        All findings, in the order of the shards; empty: the dataset is sound.

    Raises:
        DataError: there is no index, or it can't be read.
    """
    index = load_index(root)
    total = sum(shard.nsamples for shard in index.shards)
    findings: list[Finding] = []
    groups: dict[str, tuple[str, str]] = {}
    done = 0
    for number, shard in enumerate(index.shards):
        file_findings = list(_check_file(index, shard))
        rest = _members_read_on(index, shard) if file_findings else {}
        findings += file_findings
        for position, key in enumerate(shard.keys):
            findings += _check_sample(index, number, position, rest.get(key), groups)
            done += 1
            if progress is not None:
                progress(done, total)
    return [*findings, *_check_counts(index)]


def _check_file(index: DatasetIndex, shard: Shard) -> Iterator[Finding]:
    """Compare the file as a whole with the index."""
    try:
        size, digest, trailer = _measure(index, shard)
    except DataError as error:
        yield Finding(shard.url, "", _reason(error, shard.url, "the whole file"))
        return
    if size != shard.filesize:
        state = "empty file" if size == 0 else "truncated" if size < shard.filesize else "too long"
        yield Finding(shard.url, "", f"{state}: {size} bytes, the index says {shard.filesize}")
    elif digest != shard.sha256:
        yield Finding(shard.url, "", f"damaged: sha256 is {digest}, the index says {shard.sha256}")
    if trailer:
        yield Finding(shard.url, "", f"there is data after the last sample (byte {shard.end})")


def _measure(index: DatasetIndex, shard: Shard) -> tuple[int, str, bool]:
    """Return a shard's size, its SHA-256, and whether anything but zeros follows its last sample."""
    digest, size, trailer = hashlib.sha256(), 0, False
    for block in read_shard(index, shard):
        digest.update(block)
        beyond = block[max(0, shard.end - size) :]
        trailer = trailer or (bool(beyond) and any(beyond))
        size += len(block)
    return size, digest.hexdigest(), trailer


def _members_read_on(index: DatasetIndex, shard: Shard) -> dict[str, dict[str, bytes]]:
    """Read a shard that differs from the index as a plain tar reader would: key → members, as far as it goes."""
    from webdataset import tariterators

    found: dict[str, dict[str, bytes]] = {}
    try:
        stream = io.BytesIO(b"".join(read_shard(index, shard)))
        for sample in tariterators.group_by_keys(
            tariterators.tar_file_expander([{"url": shard.url, "stream": stream}])
        ):
            found[sample["__key__"]] = {name: data for name, data in sample.items() if not name.startswith("__")}
    except Exception:  # damage of any kind, which the caller has reported already
        pass
    return found


def _check_sample(
    index: DatasetIndex,
    number: int,
    position: int,
    rest: dict[str, bytes] | None,
    groups: dict[str, tuple[str, str]],
) -> Iterator[Finding]:
    """Read, decode and look at one sample.

    Args:
        index: the dataset.
        number: of the shard.
        position: of the sample in the shard.
        rest: members that a plain tar reader found for this key in a damaged shard.
        groups: gathers near-duplicate group → (split, key) over all samples.
    """
    shard = index.shards[number]
    key = shard.keys[position]
    try:
        members = split_members(read_sample(index, number, position), key=key, shard=shard.url)
    except DataError as error:
        yield Finding(shard.url, key, _reason(error, shard.url, key))
        if rest is None:
            return
        members = rest
    try:
        sample = decode_sample(members, key=key, shard=shard.url, with_points=True)
    except DataError as error:
        yield Finding(shard.url, key, _reason(error, shard.url, key))
        return
    views, side = sample.masks.shape[:2]
    if views > index.views:
        yield Finding(shard.url, key, f"{views} views, the index says at most {index.views}")
    if side != index.image_size:
        yield Finding(shard.url, key, f"images of {side} × {side} pixels, the index says {index.image_size}")
    for reason in (*camera_findings(sample), *occupancy_findings(sample), *depth_findings(members, sample)):
        yield Finding(shard.url, key, reason)
    group = str(sample.meta.get("near_duplicate_group", key))
    split, other = groups.setdefault(group, (shard.split, key))
    if split != shard.split:
        yield Finding(
            shard.url, key, f"in split {shard.split}, but its near-duplicate {other} (group {group}) is in {split}"
        )


def _reason(error: DataError, *where: str) -> str:
    """Return an error's text without the shard and key, which a finding names by itself."""
    text = str(error)
    for part in where:
        text = text.removeprefix(f"{part}: ")
    return text


def camera_findings(sample: ObjectSample) -> Iterator[str]:
    """Project the object with each view's camera and compare with its mask.

    With ground truth, its points must lie in the frame and nearly all of them on the mask. Without, the mask must
    lie within the picture of the unit cube that holds the object.
    """
    for view, mask in enumerate(sample.masks):
        camera = sample.world_to_camera[view], float(sample.focal_length[view])
        reason = _cube_fault(mask, *camera) if sample.points is None else _points_fault(sample.points, mask, *camera)
        if reason:
            yield f"view {view:02d}: {reason}"


def occupancy_findings(sample: ObjectSample) -> Iterator[str]:
    """Project the occupied voxels' centres with each view's camera: all are inside of the object, so on its mask."""
    if sample.occupancy is None:
        return
    centres = (np.argwhere(sample.occupancy) + 0.5) / len(sample.occupancy) - 0.5
    for view, mask in enumerate(sample.masks):
        camera = sample.world_to_camera[view], float(sample.focal_length[view])
        if reason := _points_fault(centres, mask, *camera, what="occupied voxels"):
            yield f"occupancy.npy: view {view:02d}: {reason}"


def _points_fault(
    points: NDArray[np.floating],
    mask: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    focal_length: float,
    what: str = "ground truth",
) -> str | None:
    xy, depth = _project(points.astype(np.float64), matrix, focal_length)
    seen = (depth > NEAR) & ((xy >= 0) & (xy <= 1)).all(axis=1)
    if not seen.any():
        return "the camera puts the object out of the frame"
    share = _share_on_mask(xy[seen], mask) * float(seen.mean())
    if share < INSIDE_SHARE:
        return f"camera and mask don't belong together: only {share:.0%} of the {what} projects onto the mask"
    return None


def _cube_fault(mask: NDArray[np.uint8], matrix: NDArray[np.float64], focal_length: float) -> str | None:
    corners = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    xy, depth = _project(corners, matrix, focal_length)
    if (depth <= NEAR).all():
        return "the camera puts the object out of the frame: it lies behind the camera"
    if (depth <= NEAR).any():
        return None  # the camera stands in the cube, whose picture has no bounds
    rows, columns = np.nonzero(mask >= FOREGROUND)
    room = MARGIN / len(mask)
    low, high = xy.min(axis=0) - room, xy.max(axis=0) + room
    if (low > 1).any() or (high < 0).any():
        return "the camera puts the object out of the frame"
    x, y = (columns + 0.5) / len(mask), (rows + 0.5) / len(mask)
    if x.min() < low[0] or x.max() > high[0] or y.min() < low[1] or y.max() > high[1]:
        return "camera and mask don't belong together: the mask reaches out of the picture of the unit cube"
    return None


def _project(
    points: NDArray[np.float64], world_to_camera: NDArray[np.float64], focal_length: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return frame coordinates [N, 2] and depths [N]; as `drwr_dist.camera.project`, without torch."""
    camera = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    depth = camera[:, 2]
    safe = np.where(depth > NEAR, depth, np.inf)
    return focal_length * camera[:, :2] / safe[:, None] + 0.5, depth


def _share_on_mask(xy: NDArray[np.float64], mask: NDArray[np.uint8]) -> float:
    """Return the share of frame coordinates [N, 2] that lie on a mask grown by MARGIN pixels."""
    side = len(mask)
    pixel = np.clip((xy * side).astype(np.int64), 0, side - 1)
    return float(grown(mask)[pixel[:, 1], pixel[:, 0]].mean())


def grown(mask: NDArray[np.uint8], margin: float = MARGIN) -> NDArray[np.bool_]:
    """Return the pixels [H, W] whose centre is within `margin` pixels of a pixel that the object touches."""
    distance = cv2.distanceTransform((mask == 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return np.asarray(distance <= margin)


def _check_counts(index: DatasetIndex) -> Iterator[Finding]:
    """Compare the categories' counts with the keys."""
    found: Counter[tuple[str, str]] = Counter(
        (key.split("/", 1)[0], shard.split) for shard in index.shards for key in shard.keys
    )
    said = Counter({(name, split): n for name, counts in index.categories.items() for split, n in counts.items()})
    for name, split in sorted(set(found) | set(said)):
        if found[name, split] != said[name, split]:
            yield Finding(
                "index.json",
                "",
                f"category {name}, split {split}: {said[name, split]} objects promised, {found[name, split]} listed",
            )
