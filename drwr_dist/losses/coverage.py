"""The coverage term: every part of the silhouette should have a projection near. No rendering either.

Repulsion spreads points that are inside a silhouette; it neither sees a part that no point has reached, nor draws
a point there. This term does. S places stand for the silhouette, spread evenly over its area, and each asks for
its k nearest projections:

    C = 1/(S k) Σ_s Σ_{i in the k nearest of s} ( √(|x_s - p_i|² + ε²) - ε ),    in widths of the frame

Linear in the number of points, as S is fixed. The places are a function of the mask alone, so that a run's numbers
depend neither on the number of workers nor on where it was resumed.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drwr_dist.neighbours import nearest_by_tree

SOFTENING = 1e-3  # widths of the frame; ε: a point that has arrived feels no kink
_WORKING_SET = 64 * 2**20  # bytes of distances that are alive at once


def silhouette_places(masks: Tensor, count: int) -> Tensor:
    """Return `count` places per silhouette, spread evenly over its area.

    The mask's mass is laid out along a Z-order curve through the image, which keeps neighbours together, and cut
    into `count` equal parts; the centre of the pixel in which the middle of a part lies is the place.

    Args:
        masks: [L, H, H] in [0, 1].
        count: places per mask.

    Returns:
        [L, count, 2], frame coordinates (x, y down). Of an empty mask: any.
    """
    side = masks.shape[-1]
    curve = torch.from_numpy(_z_order(side)).to(masks.device)
    mass = masks.flatten(1)[:, curve].double().cumsum(-1)  # float64: middles and sums must not tie by rounding
    middles = (torch.arange(count, device=masks.device, dtype=mass.dtype) + 0.5) / count
    found = torch.searchsorted(mass, middles * mass[:, -1:]).clamp(max=side * side - 1)
    pixel = curve[found]
    return torch.stack((pixel % side, pixel // side), dim=-1).to(masks.dtype).add(0.5) / side


def coverage(
    xy: Tensor,  # [L, N, 2]
    valid: Tensor,  # [L, N]
    masks: Tensor,  # [L, H, H]
    count: int,
    neighbours: int = 1,
) -> Tensor:
    """Return C of each view: the mean distance from the silhouette's places to their nearest projections.

    Args:
        xy: [L, N, 2], frame coordinates, finite.
        valid: [L, N], which points take part.
        masks: [L, H, H] in [0, 1].
        count: places per silhouette.
        neighbours: k, projections that each place asks for; a view with fewer valid points has them counted again.

    Returns:
        [L], widths of the frame; 0 for an empty mask and for a view without points.
    """
    # Autocast would compute in half precision, which confuses neighbours.
    with torch.autocast(xy.device.type, enabled=False):
        places = silhouette_places(masks, count)
        chosen = _nearest(xy.detach(), valid, places, neighbours)
    nearest = xy.gather(1, chosen.flatten(1)[..., None].expand(-1, -1, 2)).view(*chosen.shape, 2)
    distance = (((nearest - places[:, :, None]).square().sum(-1) + SOFTENING**2).sqrt() - SOFTENING).flatten(1)
    takes_part = valid.any(-1) & (masks.flatten(1) > 0).any(-1)
    return torch.where(takes_part, distance.mean(-1), torch.zeros_like(distance[:, 0]))


def _nearest(xy: Tensor, valid: Tensor, places: Tensor, neighbours: int) -> Tensor:
    """Return the indices [L, S, k] of the valid points nearest to each place; any for a view without points."""
    neighbours = min(neighbours, xy.shape[1])
    if xy.device.type == "cpu":
        trees = zip(xy.numpy(), valid.numpy(), places.numpy(), strict=True)
        found = [_nearest_by_tree(*view, neighbours) for view in trees]
        shape = (*places.shape[:2], neighbours)
        return torch.from_numpy(np.stack(found)) if found else torch.zeros(shape, dtype=torch.int64)
    return _nearest_of_all(xy, valid, places, neighbours)


def _nearest_by_tree(
    xy: NDArray[Any], valid: NDArray[np.bool_], places: NDArray[Any], neighbours: int
) -> NDArray[np.int64]:
    """Return the indices [S, k] for one view: a tree is several times as fast as all distances, and exact."""
    present = np.flatnonzero(valid)
    if not len(present):
        return np.zeros((len(places), neighbours), dtype=np.int64)
    ranks = np.arange(neighbours) % len(present)  # with too few points, the nearest count again
    found = nearest_by_tree(places, xy[present], min(neighbours, len(present)))
    return np.asarray(present[found[:, ranks]], dtype=np.int64)


def _nearest_of_all(xy: Tensor, valid: Tensor, places: Tensor, neighbours: int) -> Tensor:
    """Return the indices [L, S, k] from all distances, in chunks of views: what GPUs are quick at."""
    each = places.shape[1] * xy.shape[1] * xy.element_size()
    size = max(1, _WORKING_SET // each)
    ranks = torch.arange(neighbours, device=xy.device)
    indices = []
    for start in range(0, max(len(xy), 1), size):
        points, present = xy[start : start + size], valid[start : start + size]
        # |p|² - 2 x·p orders the points as |x - p|² does.
        squared = torch.where(present, points.square().sum(-1), torch.inf)
        order = torch.baddbmm(squared[:, None], places[start : start + size], points.mT, alpha=-2)
        found = order.topk(neighbours, dim=-1, largest=False).indices
        again = ranks % present.sum(-1, keepdim=True).clamp(min=1)  # [l, k]
        indices.append(found.gather(-1, again[:, None].expand_as(found)))
    return torch.cat(indices)


@functools.lru_cache(maxsize=8)
def _z_order(side: int) -> np.ndarray:
    """Return the pixel numbers (row by row) of a side × side image in the order of a Z-order curve."""
    row, column = np.divmod(np.arange(side * side, dtype=np.int64), side)
    key = np.zeros_like(row)
    for bit in range(side.bit_length()):
        key |= ((column >> bit) & 1) << (2 * bit) | ((row >> bit) & 1) << (2 * bit + 1)
    return np.argsort(key, kind="stable")
