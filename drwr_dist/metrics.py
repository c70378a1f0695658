"""How good a prediction is: distances between point clouds, and the overlap with a silhouette.

Points are in the object frame (the unit cube), distances in sides of the unit cube; reports multiply by 100.
"""

from __future__ import annotations

import numpy as np
import small_gicp
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from torch import Tensor

from drwr_dist.neighbours import nearest_by_tree, squared_distances

_CHUNK = 2**22  # distances in memory at once, where no tree is at hand (on a GPU)
_ORDERED = 4096  # points of a cloud from which on it pays to ask in an order in which neighbours follow each other
EARTH_MOVER_POINTS = 2048  # matched at most


def chamfer_distance(predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean distance to the nearest neighbour, both ways, unsquared: the released evaluation's.

    Nearest neighbours are found without a gradient (a k-d tree on the CPU, blocks of distances on a GPU),
    then the distance to them is differentiated: memory is linear in N and M. The gradient of a distance of
    0 is 0.

    Args:
        predicted: [N, 3], floating.
        target: [M, 3], floating, same device.

    Returns:
        predicted_to_target and target_to_predicted, scalars; their sum is the Chamfer distance of the
        reports.

    Raises:
        ValueError: a shape is not [N, 3] with N ≥ 1, or a coordinate is not finite.

    Examples:
        >>> predicted = torch.tensor([[0.0, 0.0, 0.0]])
        >>> target = torch.tensor([[0.3, 0.4, 0.0], [0.0, 0.0, 0.1]])
        >>> chamfer_distance(predicted, target)  # 0.1 to the nearer one; (0.5 + 0.1) / 2 back
        (tensor(0.1000), tensor(0.3000))
    """
    _require_points(predicted, "predicted")
    _require_points(target, "target")
    return nearest_distances(predicted, target).mean(), nearest_distances(target, predicted).mean()


def f_score(predicted: Tensor, target: Tensor, threshold: float) -> Tensor:
    """Return the harmonic mean of precision and recall at a distance.

    Precision is the share of predicted points nearer than the threshold to a target point, recall the share
    of target points nearer than it to a predicted one. Both 0 gives 0.

    Args:
        predicted: [N, 3].
        target: [M, 3].
        threshold: sides of the unit cube.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: as `chamfer_distance`.

    Examples:
        >>> predicted = torch.tensor([[0.0, 0.0, 0.0]])
        >>> target = torch.tensor([[0.3, 0.4, 0.0], [0.0, 0.0, 0.1]])
        >>> f_score(predicted, target, threshold=0.2)  # precision 1, recall 1/2
        tensor(0.6667)
    """
    _require_points(predicted, "predicted")
    _require_points(target, "target")
    dtype = torch.promote_types(predicted.dtype, target.dtype)
    precision = (nearest_distances(predicted, target) < threshold).to(dtype).mean()
    recall = (nearest_distances(target, predicted) < threshold).to(dtype).mean()
    harmonic: Tensor = 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(dtype).tiny)
    return harmonic


def nearest_distances(queries: Tensor, among: Tensor) -> Tensor:
    """Return the distance from each query to the nearest of other points, differentiable.

    Args:
        queries: [N, 3], floating.
        among: [M, 3], floating, same device.

    Returns:
        [N], in the points' unit.

    Raises:
        ValueError: as `chamfer_distance`.

    Examples:
        >>> nearest_distances(torch.tensor([[0.3, 0.4, 0.0], [0.0, 0.0, 0.1]]), torch.zeros(1, 3))
        tensor([0.5000, 0.1000])
    """
    _require_points(queries, "queries")
    _require_points(among, "among")
    distances: Tensor = torch.linalg.vector_norm(queries - among[_nearest(queries, among)], dim=-1)
    return distances


class PointIndex:
    """Nearest neighbours among the same points, again and again: a k-d tree on the CPU, exact in float64.

    One of a ground truth serves all predictions of its object. The tree is small_gicp's, twice as fast as SciPy's. A
    large cloud is kept in the order of a k-d tree's leaves: asked in that order, neighbours hit the same nodes
    (benchmarks/nearest.py).
    """

    def __init__(self, points: Tensor):
        _require_points(points, "points")
        self.coordinates = points.detach().to("cpu", torch.float64).numpy()
        self._order: NDArray[np.intp] | None = None
        self._ordered = self.coordinates
        if len(self.coordinates) >= _ORDERED:
            self._order = cKDTree(self.coordinates, balanced_tree=False, compact_nodes=False).indices
            self._ordered = self.coordinates[self._order]
        self._tree = small_gicp.KdTree(self._ordered)

    def distances_from(self, queries: PointIndex) -> NDArray[np.float64]:
        """Return the distance from each of the queries' points to the nearest one of these: [N]."""
        distances: NDArray[np.float64] = np.sqrt(self._tree.batch_knn_search(queries._ordered, 1)[1][:, 0])
        if queries._order is None:
            return distances
        found = np.empty_like(distances)
        found[queries._order] = distances
        return found


def earth_mover_distance(predicted: Tensor, target: Tensor, points: int = 1024, seed: int = 0) -> float:
    """Return the mean distance under the best one-to-one matching, exactly (linear assignment).

    Args:
        predicted: [N, 3].
        target: [M, 3].
        points: at most so many of each cloud are matched, the same number, drawn at random; the cost grows with the
            cube, at most 2048.
        seed: of the draw.

    Raises:
        ValueError: as `chamfer_distance`, or more than 2048 points.

    Examples:
        >>> one = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> other = torch.tensor([[1.0, 0.0, 0.2], [0.0, 0.0, 0.0]])
        >>> round(earth_mover_distance(one, other), 6)  # matched crosswise: (0 + 0.2) / 2
        0.1
    """
    _require_points(predicted, "predicted")
    _require_points(target, "target")
    if points > EARTH_MOVER_POINTS:
        raise ValueError(f"points is {points}; at most {EARTH_MOVER_POINTS} are matched")
    count, random = min(points, len(predicted), len(target)), np.random.default_rng(seed)
    one, other = (
        cloud.detach().to("cpu", torch.float64).numpy()[random.permutation(len(cloud))[:count]]
        for cloud in (predicted, target)
    )
    costs = cdist(one, other)
    rows, columns = linear_sum_assignment(costs)
    return float(costs[rows, columns].mean())


def silhouette_iou(xy: Tensor, mask: Tensor, grid: int = 32) -> Tensor:
    """Return the intersection over union of a silhouette and the cells that projected points fall into.

    The frame is cut into grid × grid cells. A cell belongs to the silhouette if any of its pixels does
    (mask ≥ 0.5), to the prediction if at least one point falls into it. So a dense sample of the true
    surface scores nearly 1 (0.96 for a disc of 0.6 of the frame): cells that the outline only just touches
    decide the rest. The grid is coarse on purpose: some 2000 points can cover a silhouette at 32 cells, and
    could not at 128. Points outside the frame, or not finite, fall into no cell. Both empty gives 1.

    Args:
        xy: [N, 2], frame coordinates (y down).
        mask: [H, W], in [0, 1] or bool.
        grid: cells per side.

    Returns:
        A float64 scalar in [0, 1], without gradient.

    Raises:
        ValueError: a shape does not fit, or the mask has fewer pixels than the grid has cells.

    Examples:
        >>> mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])  # the left half
        >>> xy = torch.tensor([[0.25, 0.25], [0.75, 0.25]])  # one point in it, one beside it
        >>> silhouette_iou(xy, mask, grid=2)  # 1 cell in both, 3 in either
        tensor(0.3333, dtype=torch.float64)
    """
    if xy.ndim != 2 or xy.shape[-1] != 2:
        raise ValueError(f"xy must be [N, 2], got {list(xy.shape)}")
    if mask.ndim != 2 or min(mask.shape) < grid:
        raise ValueError(f"mask must be [H, W] with at least {grid} pixels a side, got {list(mask.shape)}")
    xy = xy.detach()
    inside = mask if mask.dtype == torch.bool else mask >= 0.5
    pooled = torch.nn.functional.adaptive_max_pool2d(inside[None].to(torch.float32), grid)[0]
    silhouette = pooled > 0
    column, row = xy[(xy.isfinite() & (xy >= 0) & (xy < 1)).all(-1)].mul(grid).long().unbind(-1)
    covered = torch.zeros_like(silhouette)
    covered[row, column] = True
    union = (silhouette | covered).sum().double()
    intersection: Tensor = (silhouette & covered).sum()
    ratio: Tensor = intersection / union.clamp(min=1)
    return torch.where(union > 0, ratio, torch.ones_like(union))


def _nearest(queries: Tensor, among: Tensor) -> Tensor:
    """Return for each query [N, 3] the index of the nearest point of `among` [M, 3]: [N], integers."""
    queries, among = queries.detach(), among.detach()
    if queries.is_cuda:
        rows = max(1, _CHUNK // len(among))
        parts = range(0, len(queries), rows)
        return torch.cat([squared_distances(queries[i : i + rows], among).argmin(-1) for i in parts])
    return torch.from_numpy(nearest_by_tree(queries.cpu().numpy(), among.cpu().numpy(), 1)[:, 0]).to(queries.device)


def _require_points(points: Tensor, name: str) -> None:
    if points.ndim != 2 or points.shape[-1] != 3 or len(points) == 0 or not points.is_floating_point():
        raise ValueError(f"{name} must be floating [N, 3] with N ≥ 1, got {points.dtype} {list(points.shape)}")
    if not bool(points.isfinite().all()):
        count = int((~points.isfinite().all(-1)).sum())
        raise ValueError(f"{name} {list(points.shape)} has {count} points that are not finite")
