"""Antialiasing where it shows: one ray per pixel first, all rays of a pixel only where its surroundings change.

A pixel gets all its rays where its first ray and those of the eight pixels around it disagree about hitting or about
the colour, where an edge of the mesh passes through a pixel that seems empty, and next to pixels that turn out to be
partly covered. The last two find what is thinner than a pixel, such as the spokes of a wheel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

_CONTRAST = 8 / 255  # colours that differ by less are averaged by the eye, and by the network
_AROUND = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class Rays:
    """What K rays have met."""

    colour: NDArray[np.float32]  # [K, 3] in [0, 1], 0 where nothing is hit
    hit: NDArray[np.bool_]  # [K]
    depth: NDArray[np.float32] | None  # [K] camera z, 0 where nothing is hit; None: not asked for


@dataclass(frozen=True)
class Seen:
    """What the pixels of a window show."""

    colour: NDArray[np.floating]  # [H, W, 3], 0 … 255, mean of the rays that hit
    alpha: NDArray[np.floating]  # [H, W], 0 … 255, share of the rays that hit
    depth: NDArray[np.floating] | None  # [H, W], mean of the rays that hit


def trace_adaptively(
    shoot: Callable[[NDArray[np.float32]], Rays],
    first: NDArray[np.float32],
    others: NDArray[np.float32],
    edges: NDArray[np.bool_],
) -> Seen:
    """Trace a window of pixels.

    Args:
        shoot: traces rays [K, 3].
        first: [H, W, 3], the ray through the middle of each pixel.
        others: [s² - 1, H, W, 3], the rest of its s × s rays.
        edges: [H, W] pixels through which edges of the mesh pass, or at least one of any two neighbours.
    """
    height, width = first.shape[:2]
    found = shoot(first.reshape(-1, 3))
    hit = found.hit.reshape(height, width)
    colour = found.colour.reshape(height, width, 3)  # sums over the rays that hit, as is the depth
    depth = None if found.depth is None else found.depth.reshape(height, width)
    count = hit.astype(np.int64)
    traced = np.ones((height, width), np.int64)
    wanted = _changes(hit, colour) | (edges & ~hit)
    while wanted.any():
        rows, columns = np.nonzero(wanted)
        found = shoot(others[:, rows, columns].reshape(-1, 3))
        shape = (len(others), len(rows))
        colour[rows, columns] += found.colour.reshape(*shape, 3).sum(axis=0)
        count[rows, columns] += found.hit.reshape(shape).sum(axis=0)
        if depth is not None and found.depth is not None:
            depth[rows, columns] += found.depth.reshape(shape).sum(axis=0)
        traced[rows, columns] = len(others) + 1
        partly = (wanted & (count > 0) & (count < traced)).astype(np.uint8)
        wanted = (cv2.dilate(partly, _AROUND) > 0) & (traced == 1)
    divisor = np.maximum(count, 1)
    return Seen(255 * colour / divisor[..., None], 255 * count / traced, None if depth is None else depth / divisor)


def _changes(hit: NDArray[np.bool_], colour: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return the pixels [H, W] that differ from one of the eight around them."""
    level = np.concatenate([colour, hit[..., None].astype(np.float32)], axis=-1)
    return np.asarray((cv2.dilate(level, _AROUND) - cv2.erode(level, _AROUND) > _CONTRAST).any(axis=-1))
