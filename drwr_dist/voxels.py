"""Voxels: which of them a cloud of points fills, and the overlap with those inside of a watertight mesh. Pure.

The unit cube [-0.5, 0.5]³ of the object frame is cut into S³ voxels; arrays are [x, y, z].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

VOXELS = 32  # a side: some 2000 points can close the surface of a shape at this size, and could not at 64
RADIUS = 2  # voxel sides
_MARGIN = RADIUS + 2  # voxels around the cube: its sides are no walls
_REACH = np.arange(-RADIUS, RADIUS + 1)
_BALL = [(x, y, z) for x in _REACH for y in _REACH for z in _REACH if x * x + y * y + z * z <= RADIUS**2]


def filled_voxels(points: NDArray[np.floating], side: int = VOXELS) -> NDArray[np.bool_]:
    """Say which voxels a cloud fills: its closing by a ball of 2 voxel sides, cavities filled.

    1. A voxel is near if its centre is within 2 voxel sides of a point.
    2. What near voxels enclose (no way out through faces) is filled: points on a surface stand for a solid.
    3. What the first step put on the outside is taken off: a voxel stays if all voxels whose centres are within 2
       voxel sides of its own are near or filled.

    2000 points drawn on the surface of a solid give nearly its voxels (tests/test_voxels.py says how nearly). Too few
    points to close the surface of a large solid leave its inside empty.

    Args:
        points: [N, 3], object frame; those outside of the cube count for nothing.
        side: voxels a side.

    Returns:
        [side, side, side].
    """
    size = side + 2 * _MARGIN
    place = (np.asarray(points, dtype=np.float64) + 0.5) * side  # in voxels, from the corner of the cube
    place = place[((place >= 0) & (place <= side)).all(axis=1)] + _MARGIN
    cells = np.floor(place).astype(np.int32)[:, None] + _REACH.astype(np.int32)[:, None]  # [N, 5, 3]
    x, y, z = np.square(cells + 0.5 - place[:, None]).astype(np.float32).transpose(2, 0, 1)  # [N, 5] each
    i, j, k = cells.transpose(2, 0, 1)
    reached = x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :] <= RADIUS**2  # [N, 5, 5, 5]
    number = (i[:, :, None, None] * size + j[:, None, :, None]) * size + k[:, None, None, :]
    near = np.zeros(size**3, dtype=bool)
    near[number[reached]] = True
    places, _ = ndimage.label(~near.reshape(size, size, size))
    outside = places == places[0, 0, 0]  # a corner of the margin
    return ~_grown(outside)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


def voxel_iou(points: NDArray[np.floating], occupancy: NDArray[np.bool_]) -> float:
    """Return the intersection over union of the voxels that a cloud [N, 3] fills and given ones [S, S, S].

    Both empty gives 1.
    """
    filled = filled_voxels(points, len(occupancy))
    union = int((filled | occupancy).sum())
    return float((filled & occupancy).sum() / union) if union else 1.0


def _grown(voxels: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the voxels within `RADIUS` of given ones [S, S, S]; the outermost ones stay as they are."""
    size, grown = len(voxels), voxels.copy()
    target = grown[RADIUS:-RADIUS, RADIUS:-RADIUS, RADIUS:-RADIUS]
    for x, y, z in _BALL:
        target |= voxels[RADIUS + x : size - RADIUS + x, RADIUS + y : size - RADIUS + y, RADIUS + z : size - RADIUS + z]
    return grown
