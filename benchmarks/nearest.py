"""Nearest neighbours of evaluation: objects × 5 views per second and core, 2000 predicted against 10,000 true points.

python benchmarks/nearest.py — one core (set OMP_NUM_THREADS=1); processor time, the median of interleaved rounds. With
a CUDA device the blocks of distances that `drwr_dist.metrics` uses there are measured too.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from scipy.spatial import cKDTree

from drwr_dist.metrics import PointIndex, nearest_distances

PREDICTED, TRUE, VIEWS, ROUNDS = 2000, 10_000, 5, 15
FLANN = {"algorithm": 4, "leaf_max_size": 12, "reorder": True}  # one exact tree, float32


def surface(count: int, seed: int, noise: float = 0.0) -> torch.Tensor:
    """Return points on the sides of a box (a surface, as real ground truth is), perhaps with noise."""
    random = np.random.default_rng(seed)
    points = random.uniform(-0.4, 0.4, (count, 3))
    points[np.arange(count), random.integers(0, 3, count)] = random.choice([-0.4, 0.4], count)
    return torch.from_numpy((points * (1, 0.6, 0.8) + random.normal(0, noise, (count, 3))).astype(np.float32))


def plain(predictions: list[torch.Tensor], truth: torch.Tensor) -> None:
    """SciPy, two balanced trees per view: the most obvious way."""
    for points in predictions:
        cKDTree(truth.numpy()).query(points.numpy())
        cKDTree(points.numpy()).query(truth.numpy())


def shared(predictions: list[torch.Tensor], truth: torch.Tensor) -> None:
    """SciPy, one balanced tree of the ground truth for all views."""
    tree = cKDTree(truth.numpy())
    for points in predictions:
        tree.query(points.numpy())
        cKDTree(points.numpy()).query(truth.numpy())


def ordered(predictions: list[torch.Tensor], truth: torch.Tensor) -> None:
    """SciPy, shared, split at midpoints, asked in the order of a tree."""
    tree = cKDTree(truth.numpy(), balanced_tree=False, compact_nodes=False)
    for points in predictions:
        other = cKDTree(points.numpy(), balanced_tree=False, compact_nodes=False)
        tree.query(points.numpy()[other.indices])
        other.query(truth.numpy()[tree.indices])


def flann(predictions: list[torch.Tensor], truth: torch.Tensor) -> None:
    """OpenCV's FLANN, shared, asked in the order of a tree; float32."""
    order = cKDTree(truth.numpy(), balanced_tree=False, compact_nodes=False).indices
    target = np.ascontiguousarray(truth.numpy()[order])
    tree = cv2.flann.Index(target, FLANN)
    for points in predictions:
        tree.knnSearch(points.numpy(), 1, params={})
        cv2.flann.Index(points.numpy(), FLANN).knnSearch(target, 1, params={})


def products(predictions: list[torch.Tensor], truth: torch.Tensor) -> None:
    """All distances by matrix products, in blocks, both ways at once; float32, half of the digits."""
    for points in predictions:
        factors = torch.cat([-2 * points, points.square().sum(1, keepdim=True)], 1)
        for block in truth.split(512):
            squares = block.square().sum(1)
            distances = factors @ torch.cat([block, torch.ones(len(block), 1)], 1).T + squares
            distances.amin(0)
            distances.amin(1)


def ours(predictions: list[torch.Tensor], truth: torch.Tensor) -> None:
    """`PointIndex`: small_gicp, shared, the ground truth in the order of a tree."""
    index = PointIndex(truth)
    for points in predictions:
        predicted = PointIndex(points)
        index.distances_from(predicted)
        predicted.distances_from(index)


def blocks(predictions: list[torch.Tensor], truth: torch.Tensor) -> None:
    """Blocks of distances on the GPU."""
    target = truth.cuda()
    for points in predictions:
        queries = points.cuda()
        nearest_distances(queries, target).cpu()
        nearest_distances(target, queries).cpu()


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    truth = surface(TRUE, 0)
    predictions = [surface(PREDICTED, 1 + view, noise=0.02) for view in range(VIEWS)]
    ways: list[tuple[Callable[..., None], Callable[[], float]]] = [
        (way, time.process_time) for way in (plain, shared, ordered, flann, products, ours)
    ]
    if torch.cuda.is_available():
        ways.append((blocks, time.perf_counter))
    seconds: dict[str, list[float]] = {way.__name__: [] for way, _ in ways}
    for _ in range(ROUNDS):
        for way, clock in ways:
            begin = clock()
            way(predictions, truth)
            seconds[way.__name__].append(clock() - begin)
    base = statistics.median(seconds["ordered"])
    for way, _ in ways:
        each = seconds[way.__name__]
        median, best = statistics.median(each), min(each)
        rate = f"{1 / median:6.1f} objects × {VIEWS} views per second (best round {1 / best:.1f})"
        print(f"{way.__name__:8} {rate}, {base / median:4.2f} × ordered: {way.__doc__}")


if __name__ == "__main__":
    main()
