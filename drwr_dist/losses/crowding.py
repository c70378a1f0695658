"""The crowding term: points that are too near to their neighbours in space push them away. No silhouettes needed.

Repulsion and coverage look at projections, which can't tell two points that lie behind one another. So points clump
in depth: the far side of an object stays empty while its projections look well. In space, each point should find its
k nearest neighbours at a distance of r at least:

    S = 1/(N k) Σ_i Σ_{j in the k nearest of i} max(0, 1 - |p_i - p_j| / r)

r shrinks with the square root of the number of points, as the spacing of points on a surface does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drwr_dist.neighbours import nearest_by_tree, squared_distances

NEIGHBOURS = 4
SOFTENING = 1e-5  # sides of the unit cube; points that coincide have a finite gradient, none
POINTS = 1000  # of which the radius is spoken
_WORKING_SET = 64 * 2**20  # bytes of distances that are alive at once


def crowding(points: Tensor, takes_part: Tensor, radius: float) -> Tensor:
    """Return S of each object.

    Args:
        points: [B, N, 3], object frame.
        takes_part: [B, N], which points count; the others are as if they were not there.
        radius: r at 1000 points, sides of the unit cube; √(1000 / n) times as much at n points that take part.

    Returns:
        [B], in [0, 1]: 0 where all neighbours are r apart, 1 where all points coincide; 0 for less than two points.
    """
    neighbours = min(NEIGHBOURS, points.shape[1] - 1)
    if neighbours < 1:
        return points.sum((1, 2)) * 0
    # Autocast would compute in half precision, which confuses neighbours.
    with torch.autocast(points.device.type, enabled=False):
        chosen = _nearest(points.detach(), takes_part, neighbours)
    count = takes_part.sum(-1)
    near = points.gather(1, chosen.flatten(1)[..., None].expand(-1, -1, 3)).view(*chosen.shape, 3)
    distance = ((near - points[:, :, None]).square().sum(-1) + SOFTENING**2).sqrt() - SOFTENING
    reach = radius * (POINTS / count.clamp(min=1)).sqrt()
    each = (1 - distance / reach[:, None, None].to(distance)).clamp(min=0).mean(-1)
    each = torch.where(takes_part & (count > 1)[:, None], each, torch.zeros_like(each))
    return each.sum(-1) / count.clamp(min=1)


def _nearest(points: Tensor, takes_part: Tensor, neighbours: int) -> Tensor:
    """Return the indices [B, N, k] of the points nearest to each that takes part, without itself; else any.

    With less than k others, the nearest count again.
    """
    if points.device.type != "cpu":
        return _nearest_of_all(points, takes_part, neighbours)
    clouds = zip(points.numpy(), takes_part.numpy(), strict=True)
    found = [_nearest_by_tree(cloud, present, neighbours) for cloud, present in clouds]
    shape = (0, points.shape[1], neighbours)
    return torch.from_numpy(np.stack(found) if found else np.zeros(shape, dtype=np.int64))


def _nearest_by_tree(cloud: NDArray[Any], takes_part: NDArray[np.bool_], neighbours: int) -> NDArray[np.int64]:
    """Return the indices [N, k] for one object: a tree is several times as fast as all distances, and exact."""
    result = np.zeros((len(cloud), neighbours), dtype=np.int64)
    present = np.flatnonzero(takes_part & np.isfinite(cloud).all(-1))
    others = min(neighbours, len(present) - 1)
    if others < 1:
        return result
    found = nearest_by_tree(cloud[present], cloud[present], others + 1)
    # The point itself comes first, unless another one coincides with it.
    is_self = found == np.arange(len(present))[:, None]
    is_self[~is_self.any(1), -1] = True
    found = found[~is_self].reshape(len(present), others)
    result[present] = present[found[:, np.arange(neighbours) % others]]
    return result


def _nearest_of_all(points: Tensor, takes_part: Tensor, neighbours: int) -> Tensor:
    """Return the same from all distances, in chunks of points: what GPUs are quick at."""
    batch, count = points.shape[:2]
    size = max(1, _WORKING_SET // (max(1, batch) * count * points.element_size()))
    again = torch.arange(neighbours, device=points.device) % (takes_part.sum(-1, keepdim=True) - 1).clamp(min=1)
    indices = []
    for start in range(0, count, size):
        part = points[:, start : start + size]
        distances = squared_distances(part, points).masked_fill_(~takes_part[:, None], torch.inf)
        rows = torch.arange(part.shape[1], device=points.device)
        distances[:, rows, rows + start] = torch.inf
        found = distances.topk(neighbours, dim=-1, largest=False).indices
        indices.append(found.gather(-1, again[:, None].expand_as(found)))
    return torch.cat(indices, dim=1)
