"""The 2D Chamfer loss: projections against points drawn in the silhouette (2D projection matching).

½ (mean over projections of the distance to the nearest drawn point + the same the other way), in pixels

The released code holds it with weight 0, for the comparison with the peer that it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from drwr_dist.neighbours import squared_distances

_WORKING_SET = 64 * 2**20  # bytes of distances that are alive at once


def silhouette_draws(images: Tensor, numbers: Tensor, jitter: bool) -> Tensor:
    """Turn random numbers into points of silhouettes, each pixel as likely as its value says.

    Args:
        images: [L, G, G] in [0, 1], silhouettes.
        numbers: [L, S, 3], uniform in [0, 1); float64, as float32 would round some to 1.
        jitter: anywhere in the pixel, else at its centre.

    Returns:
        [L, S, 2], the images' dtype, (column, row), the centre of pixel (r, c) at (c, r). Of an empty image: any.
    """
    side = images.shape[-1]
    mass = images.flatten(1).double().cumsum(-1)  # float64: sums must not tie by rounding
    wanted = numbers[..., 0].double() * mass[:, -1:]
    pixel = torch.searchsorted(mass, wanted, right=True).clamp(max=side * side - 1)
    places = torch.stack((pixel % side, pixel // side), dim=-1).double()
    return (places + (numbers[..., 1:] - 0.5) if jitter else places).to(images.dtype)


def chamfer_2d(coordinates: Tensor, valid: Tensor, targets: Tensor) -> Tensor:
    """Return half the sum of the two mean distances to the nearest neighbour, per view.

    Args:
        coordinates: [L, N, 2] pixels, finite.
        valid: [L, N], which points take part.
        targets: [L, S, 2] pixels; no gradient reaches them.

    Returns:
        [L], pixels; 0 for a view without points. The gradient of a distance of 0 is 0.
    """
    nearest_target, nearest_point = _nearest(coordinates.detach(), valid, targets)
    forward = _distances(coordinates, _at(targets, nearest_target))
    forward = torch.where(valid, forward, torch.zeros_like(forward)).sum(-1) / valid.sum(-1).clamp(min=1)
    backward = _distances(_at(coordinates, nearest_point), targets).mean(-1)
    return torch.where(valid.any(-1), (forward + backward) / 2, torch.zeros_like(forward))


def _at(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(1, index[..., None].expand(-1, -1, 2))


def _distances(a: Tensor, b: Tensor) -> Tensor:
    distance: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return distance


@torch.no_grad()
def _nearest(coordinates: Tensor, valid: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return each point's nearest target [L, N] and each target's nearest valid point [L, S]."""
    if coordinates.is_cuda:
        return _nearest_in_blocks(coordinates, valid, targets)
    by_point = torch.zeros(coordinates.shape[:2], dtype=torch.long)
    by_target = torch.zeros(targets.shape[:2], dtype=torch.long)
    for view in range(len(coordinates)):
        present = valid[view].nonzero()[:, 0]
        if len(present):
            points, goals = coordinates[view, present].numpy(), targets[view].numpy()
            by_point[view, present] = torch.from_numpy(_query(goals, points))
            by_target[view] = present[torch.from_numpy(_query(points, goals))]
    return by_point, by_target


def _query(among: NDArray[Any], places: NDArray[Any]) -> NDArray[np.int64]:
    """Return which of `among` [M, 2] is nearest to each place [K, 2]."""
    tree = cKDTree(among, balanced_tree=False, compact_nodes=False)  # it is built as often as it is asked
    return np.asarray(tree.query(places)[1], dtype=np.int64)


def _nearest_in_blocks(coordinates: Tensor, valid: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the same from all distances, some views at a time."""
    each = coordinates.shape[1] * targets.shape[1] * coordinates.element_size()
    size = max(1, _WORKING_SET // each)
    by_point, by_target = [], []
    for start in range(0, max(len(coordinates), 1), size):
        part = slice(start, start + size)
        squared = squared_distances(coordinates[part], targets[part])
        by_point.append(squared.argmin(-1))
        squared.masked_fill_(~valid[part, :, None], torch.inf)
        by_target.append(squared.argmin(1))
    return torch.cat(by_point), torch.cat(by_target)
