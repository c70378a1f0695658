"""Nearest neighbours on the CPU: a k-d tree of small_gicp, exact, and quicker than SciPy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import small_gicp
from numpy.typing import NDArray


def nearest_by_tree(queries: NDArray[Any], among: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the indices [Q, count] of the points nearest to each query, the nearest first.

    Args:
        queries: [Q, D], finite.
        among: [N, D], finite, N at least `count`.
        count: how many.
    """
    tree = small_gicp.KdTree(_in_space(among))
    found = tree.batch_knn_search(_in_space(queries), count)[0]
    return np.asarray(found, dtype=np.int64).reshape(len(queries), count)


def _in_space(points: NDArray[Any]) -> NDArray[np.float64]:
    """Return points [N, 3] of float64: those of a plane lie at z = 0."""
    result = np.zeros((len(points), 3))
    result[:, : points.shape[1]] = points
    return result
