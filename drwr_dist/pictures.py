"""What TensorBoard shows of predictions: points over silhouettes, smooth silhouettes, coverage. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drwr_dist.camera import project
from drwr_dist.silhouette import binarize, smooth_silhouette

SILHOUETTE = (200, 206, 216)
POINT = (31, 95, 191)
COVERED, MISSED, OUTSIDE = (47, 158, 91), (214, 60, 60), (240, 160, 40)
GRID = 32  # cells a side of the coverage, as in the silhouette IoU (which takes a pixel for inside from 128 on)
GAP = 2  # pixels between tiles


def points_over_silhouette(mask: NDArray[np.uint8], xy: Tensor) -> NDArray[np.uint8]:
    """Draw projections xy [N, 2] (frame coordinates) over an alpha [H, W]; return RGB [H, W, 3]."""
    opacity = mask[..., None] / 255.0
    picture = np.rint(255 * (1 - opacity) + np.array(SILHOUETTE) * opacity).astype(np.uint8)
    rows, columns = _cells(xy, len(mask))
    picture[rows, columns] = POINT
    return picture


def smooth_picture(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw the smooth silhouette of an alpha [H, W]: black is 0 or less, white is 1; RGB [H, W, 3]."""
    smooth = smooth_silhouette(torch.from_numpy(binarize(mask).astype(np.float32)))
    grey = np.rint(smooth.clamp(0, 1).numpy() * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def coverage_picture(mask: NDArray[np.uint8], xy: Tensor) -> NDArray[np.uint8]:
    """Draw which cells of a silhouette have a projection (green), which have none (red), and others' (orange)."""
    side = len(mask)
    silhouette = torch.nn.functional.adaptive_max_pool2d(torch.from_numpy(binarize(mask)).float()[None], GRID)[0] > 0
    hit = torch.zeros_like(silhouette)
    hit[_cells(xy, GRID)] = True
    picture = np.full((GRID, GRID, 3), 255, dtype=np.uint8)
    picture[(silhouette & hit).numpy()] = COVERED
    picture[(silhouette & ~hit).numpy()] = MISSED
    picture[(~silhouette & hit).numpy()] = OUTSIDE
    places = np.arange(side) * GRID // side
    return picture[places][:, places]


def sheet(rows: Sequence[Sequence[NDArray[np.uint8]]]) -> NDArray[np.uint8]:
    """Put pictures [H, W, 3] of one size into rows and columns, white between them."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    picture = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3), 255, dtype=np.uint8)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            top, left = number * (height + GAP), column * (width + GAP)
            picture[top : top + height, left : left + width] = tile
    return picture


def projections(points: Tensor, world_to_camera: NDArray[np.float64], focal_length: NDArray[np.float64]) -> Tensor:
    """Project points [N, 3] into V cameras [V, 4, 4]: xy [V, N, 2]."""
    cameras = torch.from_numpy(world_to_camera).to(points)
    return project(points.expand(len(cameras), -1, -1), cameras, torch.from_numpy(focal_length).to(points))[0]


def _cells(xy: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the cells that points fall into, those outside the frame left out."""
    inside = xy[(xy.isfinite() & (xy >= 0) & (xy < 1)).all(-1)]
    column, row = (inside * side).long().unbind(-1)
    return row, column
