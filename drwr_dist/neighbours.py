"""Nearest neighbours: on the CPU a k-d tree of small_gicp, exact and quicker than SciPy's; on a GPU all distances."""

from __future__ import annotations

from typing import Any

import numpy as np
import small_gicp
from numpy.typing import NDArray
from torch import Tensor


def nearest_by_tree(queries: NDArray[Any], among: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the indices [Q, count] of the points nearest to each query, the nearest first.

    Args:
        queries: [Q, D], finite, in the plane or in space.
        among: [N, D], finite, N at least `count`.
        count: how many.
    """
    tree = small_gicp.KdTree(_in_space(among))
    found = tree.batch_knn_search(_in_space(queries), count)[0]
    return np.asarray(found, dtype=np.int64).reshape(len(queries), count)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j|² of all pairs.

    From differences, whose rounding does not depend on where the origin is: from |a|² + |b|² - 2 a·b half of the digits
    are lost for points that nearly coincide. And not by `torch.cdist`, which spends a block of a GPU's threads on each
    pair, and there takes many times as long for points of 2 or 3 coordinates.

    Args:
        a: [..., N, D].
        b: [..., M, D].

    Returns:
        [..., N, M].
    """
    squared: Tensor = (a[..., :, None, 0] - b[..., None, :, 0]).square_()
    for axis in range(1, a.shape[-1]):
        difference = a[..., :, None, axis] - b[..., None, :, axis]
        squared.addcmul_(difference, difference)
    return squared


def _in_space(points: NDArray[Any]) -> NDArray[np.float64]:
    """Return points [N, 3] of float64: those of a plane lie at z = 0."""
    result = np.zeros((len(points), 3))
    result[:, : points.shape[1]] = points
    return result
