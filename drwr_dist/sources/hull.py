"""Where an object is, from its silhouettes alone: the bounding box of its visual hull.

First exactly but loosely: each silhouette lies within the half-planes of 16 directions, each of which is a half-space
through the camera; six linear programs bound their intersection. Then tightly: a voxel grid in that box is carved by
the silhouettes, the box is cut to what is left, and carved again more finely.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.faults import FOREGROUND
from drwr_dist.errors import DataError
from drwr_dist.sources.lens import Lens, distort, reach, undistort

_DIRECTIONS = 16  # half-planes around each silhouette
_GRIDS = (24, 40, 64)  # cells along the box's longest side, from coarse to fine
_CROP = 384  # pixels along the longer side of a stored silhouette
_CARVERS = 64  # at most so many silhouettes carve, evenly chosen; all of them bound
_BEHIND = 1e-9  # depth up to which a point is not in the picture
_SLACK = 1.0  # pixels by which masks and cameras may be off


@dataclass(frozen=True)
class Silhouette:
    """What one view says about where the object is."""

    world_to_camera: NDArray[np.float64]  # [4, 4]
    lens: Lens
    reach: float  # beyond this length of a direction, the lens is taken as a plain pinhole
    normals: NDArray[np.float64]  # [K, 2] and
    limits: NDArray[np.float64]  # [K]: normal · direction ≤ limit for every direction of the object
    low: NDArray[np.float64]  # [2] pixels, corner of the crop
    scale: float  # crop pixels per image pixel
    distance: NDArray[np.float32]  # [h, w] of the crop: image pixels to the silhouette, 0 inside


def silhouette(alpha: NDArray[np.uint8], lens: Lens, world_to_camera: NDArray[np.float64]) -> Silhouette:
    """Prepare one view's mask.

    Args:
        alpha: [H, W], the object from FOREGROUND on; not empty.
        lens: of the image.
        world_to_camera: [4, 4].

    Raises:
        DataError: the lens distortion can't be undone.
    """
    inside = (alpha >= FOREGROUND).astype(np.uint8)
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1], rows[-1]]) + 1
    margin = int(0.1 * max(high - low)) + 2
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, alpha.shape[::-1])
    crop = inside[low[1] : high[1], low[0] : high[0]]
    contours, _ = cv2.findContours(crop, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    edge = np.concatenate([contour[:, 0] for contour in contours]).astype(np.float64) + low
    corners = np.concatenate([edge + corner for corner in ((0, 0), (0, 1), (1, 0), (1, 1))])
    directions = undistort(lens, corners)
    angles = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
    normals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    distance = cv2.distanceTransform(1 - crop, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    scale = min(1.0, _CROP / max(crop.shape))
    if scale < 1:
        distance = cv2.resize(distance, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    limits = (directions @ normals.T).max(axis=0)
    return Silhouette(world_to_camera, lens, reach(lens), normals, limits, low.astype(np.float64), scale, distance)


@dataclass(frozen=True)
class Hull:
    """What all silhouettes leave of space."""

    low: NDArray[np.float64]  # [3] corners of its bounding box, in the source's frame
    high: NDArray[np.float64]
    voxels: NDArray[np.float64]  # [N, 3] centres
    size: float  # of a voxel's side


def visual_hull(silhouettes: Sequence[Silhouette]) -> Hull:
    """Carve the visual hull of some silhouettes.

    Raises:
        DataError: the views don't bound the object, or contradict each other.
    """
    low, high = _outer_bounds(silhouettes)
    kept, size = np.zeros((0, 3)), 0.0
    step = max(1, -(-len(silhouettes) // _CARVERS))
    for level, cells in enumerate(_GRIDS):
        last = level == len(_GRIDS) - 1
        size = float((high - low).max()) / cells
        centres = _centres(low, high, size)
        # A voxel of a coarse grid stays while any part of it may belong to the object.
        radius = size / 2 if last else size * np.sqrt(3) / 2
        kept = _carve(centres, radius, silhouettes[::step])
        if not len(kept):
            raise DataError(
                "masks and cameras contradict each other: no place is inside all silhouettes; check that the masks "
                "are white on the object, and the cameras' axes"
            )
        low, high = np.maximum(low, kept.min(axis=0) - size / 2), np.minimum(high, kept.max(axis=0) + size / 2)
    return Hull(low, high, kept, size)


def explained(hull: Hull, view: Silhouette) -> float:
    """Return the share of a silhouette that the hull's picture covers: about 1 where all cameras are right."""
    pixels, depth = _project(hull.voxels, view)
    height, width = view.distance.shape
    place = ((pixels - view.low) * view.scale).astype(np.int64)
    column, row = place[((place >= 0) & (place < (width, height))).all(axis=1)].T
    empty = np.ones((height, width), np.uint8)
    empty[row, column] = 0
    if empty.all():
        return 0.0
    radius = (hull.size * max(view.lens.fx, view.lens.fy) / float(np.median(depth)) + _SLACK) * view.scale
    covered = cv2.distanceTransform(empty, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) <= radius
    return float(covered[view.distance == 0].mean())


def _outer_bounds(silhouettes: Sequence[Silhouette]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bound the intersection of the silhouettes' half-spaces."""
    from scipy.optimize import linprog

    rows, limits = [], []
    for view in silhouettes:
        rotation, translation = view.world_to_camera[:3, :3], view.world_to_camera[:3, 3]
        # normal · (X, Y) - limit · Z ≤ 0, and Z ≥ 0
        planes = np.concatenate([view.normals, -view.limits[:, None]], axis=1)
        planes = np.concatenate([planes, [[0.0, 0.0, -1.0]]])
        planes /= np.linalg.norm(planes, axis=1, keepdims=True)
        rows.append(planes @ rotation)
        limits.append(-planes @ translation)
    matrix, bound = np.concatenate(rows), np.concatenate(limits)
    # Measured in the cameras' own spread, so that the solver's tolerances fit any unit.
    centres = np.stack([-view.world_to_camera[:3, :3].T @ view.world_to_camera[:3, 3] for view in silhouettes])
    middle = centres.mean(axis=0)
    unit = float(np.abs(centres - middle).max()) or 1.0
    bound = (bound - matrix @ middle) / unit + 1e-9
    corners = np.zeros((2, 3))
    for axis in range(3):
        for end, sign in enumerate((1.0, -1.0)):
            cost = np.zeros(3)
            cost[axis] = sign
            found = linprog(cost, A_ub=matrix, b_ub=bound, bounds=(None, None), method="highs")
            if found.status == 3:
                raise DataError("the views don't bound the object: they look from too few sides")
            if found.status != 0 or found.x is None:
                raise DataError(
                    "masks and cameras contradict each other: no place is inside all silhouettes; check the cameras' "
                    "order and axes, and the masks"
                )
            corners[end, axis] = found.x[axis]
    low, high = corners * unit + middle
    if not (high - low).max() > 0:
        raise DataError("the object has no extent: all silhouettes meet in a point")
    return low, high


def _centres(low: NDArray[np.float64], high: NDArray[np.float64], size: float) -> NDArray[np.float64]:
    """Return the centres of voxels that fill a box, [N, 3]."""
    axes = []
    for start, stop in zip(low, high, strict=True):
        count = max(1, int(np.ceil((stop - start) / size - 1e-9)))
        axes.append((start + stop) / 2 + (np.arange(count) - (count - 1) / 2) * size)
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)


def _carve(centres: NDArray[np.float64], radius: float, silhouettes: Sequence[Silhouette]) -> NDArray[np.float64]:
    """Keep the centres [N, 3] that are within a radius of every silhouette's cone."""
    return functools.reduce(lambda left, view: left[_touches(left, radius, view)], silhouettes, centres)


def _touches(centres: NDArray[np.float64], radius: float, view: Silhouette) -> NDArray[np.bool_]:
    pixels, depth = _project(centres, view)
    height, width = view.distance.shape
    place = (pixels - view.low) * view.scale
    column = np.clip(place[:, 0].astype(np.int64), 0, width - 1)
    row = np.clip(place[:, 1].astype(np.int64), 0, height - 1)
    # Outside of the crop the distance to the crop is a lower bound: such a voxel is kept rather than lost.
    edge = np.maximum(np.maximum(-place, place - (width, height)), 0.0) / view.scale
    outside = np.linalg.norm(edge, axis=1)
    distance = np.where(outside > 0, outside, view.distance[row, column])
    allowed = radius * max(view.lens.fx, view.lens.fy) / np.maximum(depth, _BEHIND) + _SLACK
    return np.asarray((depth > _BEHIND) & (distance <= allowed))


def _project(points: NDArray[np.float64], view: Silhouette) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return pixels [N, 2] and depths [N] of points; where the lens means nothing, as a plain pinhole has them."""
    camera = points @ view.world_to_camera[:3, :3].T + view.world_to_camera[:3, 3]
    depth, lens = camera[:, 2], view.lens
    directions = camera[:, :2] / np.where(depth > _BEHIND, depth, 1.0)[:, None]
    pixels = distort(lens, directions)
    beyond = np.linalg.norm(directions, axis=1) > view.reach
    pixels[beyond] = directions[beyond] * (lens.fx, lens.fy) + (lens.cx, lens.cy)
    return pixels, depth
