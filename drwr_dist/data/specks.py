"""Masks without specks: what a segmentation gets wrong in single pixels, training should not have to believe.

The coverage term wants points at every part of a silhouette, so a few wrong pixels far from the object draw points
there.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.faults import FOREGROUND


def without_specks(alpha: NDArray[np.uint8], smallest: int) -> NDArray[np.uint8]:
    """Take specks out of an alpha channel: patches of object, and holes in it, of fewer than `smallest` pixels.

    The largest patch stays whatever its size, so nothing becomes empty. Pixels of a patch are neighbours by edge or
    corner, so thin parts that a mask draws as a broken diagonal hold together; those of a hole by edge.

    Args:
        alpha: [H, W]; a pixel is of the object from 153 on.
        smallest: pixels.

    Returns:
        [H, W]: 0 where a speck was, 255 where a hole was, else as given.

    Examples:
        >>> alpha = np.zeros((6, 6), np.uint8)
        >>> alpha[1:5, 1:4], alpha[2, 2], alpha[5, 5] = 255, 0, 255  # with a hole, and a pixel that touches a corner
        >>> alpha[0, 5] = 255  # and a speck
        >>> without_specks(alpha, 3)[[0, 2], :].tolist()
        [[0, 0, 0, 0, 0, 0], [0, 255, 255, 255, 0, 0]]
    """
    cleaned = np.where(_small(_inside(alpha), smallest, 8), np.uint8(0), alpha)
    # Second: a speck in a hole belongs to the hole.
    return np.where(_small(1 - _inside(cleaned), smallest, 4), np.uint8(255), cleaned)


def _inside(alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.threshold(alpha, FOREGROUND - 1, 1, cv2.THRESH_BINARY)[1], dtype=np.uint8)


def _small(inside: NDArray[np.uint8], smallest: int, neighbours: int) -> NDArray[np.bool_]:
    """Return which pixels [H, W] are of a patch of fewer than `smallest` pixels that is not the largest one."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(inside, connectivity=neighbours)
    areas = statistics[:, cv2.CC_STAT_AREA]
    small = areas < smallest
    small[0] = False  # label 0 is what lies outside of all patches
    if len(areas) > 1:
        small[1 + int(areas[1:].argmax())] = False
    return np.asarray(small[labels])
