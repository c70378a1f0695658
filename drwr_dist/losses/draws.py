"""Random choices in the objective, as functions of (seed, step, sample): no worker count, no resume changes them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Separates the random streams; numbers below 10 belong to `drwr_dist.data.plan`.
DROPOUT, SILHOUETTE, POSE, DIRECTION, CHOICE = 11, 12, 13, 14, 15


def kept_points(count: int, keep: float, seed: int, step: int) -> Tensor:
    """Return which points are kept at a step: int64 [max(1, ⌊count · keep⌋)], ascending, without replacement.

    Points are exchangeable, so all objects of a step share the choice.

    Args:
        count: points per object.
        keep: the share to keep, in (0, 1].
        seed: of the run.
        step: from 0.
    """
    kept = max(1, int(count * keep))
    if kept >= count:
        return torch.arange(count)
    chosen = np.random.default_rng((seed, DROPOUT, step)).choice(count, kept, replace=False)
    return torch.from_numpy(np.sort(chosen).astype(np.int64))


def random_quaternions(keys: Sequence[str], views: int, seed: int, step: int) -> Tensor:
    """Return rotations drawn uniformly: float64 [len(keys), views, 4], a function of (seed, step, key, place)."""
    rows = [
        np.random.default_rng((seed, POSE, step, zlib.crc32(key.encode()))).standard_normal((views, 4)) for key in keys
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, views, 4, dtype=torch.float64)


def uniform_numbers(keys: Sequence[str], views: int, count: int, seed: int, step: int) -> Tensor:
    """Return numbers in [0, 1) for drawing points in silhouettes: float64 [len(keys), views, count, 3].

    Those of a view depend on (seed, step, key, place of the view) alone.
    """
    return uniform_per_view(keys, (views, count, 3), SILHOUETTE, seed, step)


def uniform_per_view(keys: Sequence[str], shape: tuple[int, ...], stream: int, seed: int, step: int) -> Tensor:
    """Return numbers in [0, 1): float64 [len(keys), *shape], a function of (seed, stream, step, key) and the place."""
    rows = [np.random.default_rng((seed, stream, step, zlib.crc32(key.encode()))).random(shape) for key in keys]
    return torch.from_numpy(np.stack(rows)) if rows else torch.zeros(0, *shape, dtype=torch.float64)
