"""What can be wrong with the arrays of an object: its masks, its cameras, its ground-truth points."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

FOREGROUND = 153  # a pixel belongs to the object where its alpha is at least 153 of 255, as in the released records
_LAST_ROW, _IDENTITY = np.array([0.0, 0.0, 0.0, 1.0]), np.eye(3)


def mask_fault(mask: NDArray[np.uint8]) -> str | None:
    """Say what is wrong with a mask [H, W] as a training target, or return None."""
    inside = cv2.countNonZero(cv2.threshold(mask, FOREGROUND - 1, 1, cv2.THRESH_BINARY)[1])
    if not inside:
        return "the mask is empty: no pixel belongs to the object; remove the view or render it again"
    if inside == mask.size:
        return "the mask is full: no pixel is background; move the camera back or store the alpha channel"
    return None


def camera_fault(world_to_camera: NDArray[np.float64], focal_length: NDArray[np.float64]) -> str | None:
    """Say what is wrong with cameras [V, 4, 4] and focal lengths [V], or return None."""
    if _plainly_sound(world_to_camera, focal_length):
        return None
    for view, (matrix, focal) in enumerate(zip(world_to_camera, focal_length, strict=True)):
        if not (np.isfinite(matrix).all() and math.isfinite(focal)):
            return f"the camera of view {view:02d} is not finite"
        if focal <= 0:
            return f"the focal length of view {view:02d} is {focal:g}; it must be positive (frame widths)"
        if not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-8):
            return f"the last row of the camera of view {view:02d} is {matrix[3].tolist()}, not [0, 0, 0, 1]"
        if not is_rotation(matrix[:3, :3]):
            return f"the camera of view {view:02d} is not rigid: its rotation is not orthonormal and right-handed"
    return None


def _plainly_sound(world_to_camera: NDArray[np.float64], focal_length: NDArray[np.float64]) -> bool:
    """Say whether all cameras pass at once, by somewhat stricter limits: the usual case, without a loop."""
    finite = np.isfinite(world_to_camera).all() and np.isfinite(focal_length).all()
    if not (finite and focal_length.min() > 0 and (world_to_camera[:, 3] == _LAST_ROW).all()):
        return False
    return is_rotation(world_to_camera[:, :3, :3])


def is_rotation(matrices: NDArray[np.float64], tolerance: float = 1e-4) -> bool:
    """Say whether finite matrices [..., 3, 3] are all orthonormal and right-handed.

    Args:
        matrices: [..., 3, 3].
        tolerance: by which an entry of a matrix times its transpose may differ from the identity's.
    """
    if np.abs(matrices).max() > 2:  # the product of what is far above 1 might be too large for a number
        return False
    orthonormal = np.abs(matrices @ matrices.mT - _IDENTITY).max() <= tolerance
    return bool(orthonormal and np.linalg.det(matrices).min() > 0)


def points_fault(points: NDArray[Any]) -> str | None:
    """Say what is wrong with ground-truth points [M, 3], or return None."""
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        return f"ground-truth points must be [M, 3] with M ≥ 1, got {list(points.shape)}"
    if points.dtype.kind != "f":
        return f"ground-truth points must be floating point, got {points.dtype}"
    if not np.isfinite(points).all():
        return "ground-truth points are not finite"
    return None
