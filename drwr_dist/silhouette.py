"""Silhouettes: binary masks from alpha, and the smooth silhouette that draws points inside."""

from __future__ import annotations

import functools
from typing import Any, overload

import cv2
import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

INSIDE = 0.95  # pixels at least this opaque are what distances are measured to
EDGE = 220 / 255  # value that the falloff starts from, at distance 0
FALLOFF = 64 * 2**0.5  # pixels over which it falls by 1; of every image size, as in the released code
OPAQUE = 153 / 255  # alpha from which a pixel belongs to the binary silhouette
_EXACT_IN_FLOAT32 = 1_000_000  # squared pixels: below, a squared distance survives OpenCV's float32
_MOST_UINT16 = 65535  # squared pixels
Squares = npt.NDArray[np.uint16] | npt.NDArray[np.int32]  # squared distances


@overload
def binarize(alpha: Tensor) -> Tensor: ...
@overload
def binarize(alpha: npt.NDArray[Any]) -> npt.NDArray[Any]: ...
def binarize(alpha: Tensor | npt.NDArray[Any]) -> Tensor | npt.NDArray[Any]:
    """Return the binary silhouette of an alpha channel: opaque where alpha ≥ 0.6 (153 of 255).

    Args:
        alpha: any shape, a tensor or an array; uint8 in 0 … 255 or floating in [0, 1].

    Returns:
        The same shape, kind and dtype: 0 and 255 for uint8, else 0 and 1.

    Raises:
        ValueError: another dtype.

    Examples:
        >>> binarize(torch.tensor([0.0, 0.5, 0.7]))
        tensor([0., 0., 1.])
        >>> binarize(np.array([0, 152, 153], dtype=np.uint8))
        array([  0,   0, 255], dtype=uint8)
    """
    is_bytes = alpha.dtype in (torch.uint8, np.uint8)
    threshold, opaque = (153, 255) if is_bytes else (OPAQUE, 1)
    if isinstance(alpha, Tensor):
        if is_bytes or alpha.is_floating_point():
            return (alpha >= threshold).to(alpha.dtype) * opaque
    elif is_bytes or np.issubdtype(alpha.dtype, np.floating):
        return (alpha >= threshold).astype(alpha.dtype) * opaque
    raise ValueError(f"alpha must be uint8 (0 … 255) or floating ([0, 1]), got {alpha.dtype}")


def smooth_silhouette(mask: Tensor) -> Tensor:
    """Extend a mask by a linear falloff outside: 220/255 - d / (64 √2).

    d is the Euclidean distance in pixels, centre to centre, to the nearest pixel with mask ≥ 0.95. Only
    pixels that are exactly 0 are replaced: antialiased edge values stay. Nothing is clipped, so the far
    corners of a 128 × 128 image can reach -1.1. A mask with no pixel ≥ 0.95, or nothing else, is returned
    as it is. The released `mask_sdf` computes the same in Python loops over the background.

    Args:
        mask: [..., H, W], floating, in [0, 1].

    Returns:
        [..., H, W], same dtype and device, without gradient. Distances are exact: float64 to rounding.

    Raises:
        ValueError: fewer than two dimensions, or not floating.

    Examples:
        >>> smooth_silhouette(torch.tensor([[1.0, 0.0, 0.0, 0.0]]))  # 1, 2, 3 pixels from the object
        tensor([[1.0000, 0.8517, 0.8406, 0.8296]])
    """
    if mask.ndim < 2 or not mask.is_floating_point():
        raise ValueError(f"mask must be floating [..., H, W], got {mask.dtype} {list(mask.shape)}")
    values = mask.detach().to("cpu", torch.promote_types(mask.dtype, torch.float32))
    images = values.reshape(-1, *mask.shape[-2:])
    smooth = torch.stack([_smooth_one(image) for image in images]) if len(images) else images
    return smooth.reshape(mask.shape).to(mask.device, mask.dtype)


def _smooth_one(mask: Tensor) -> Tensor:
    """Smooth one mask [H, W] on the CPU."""
    inside = mask >= INSIDE
    if not inside.any() or inside.all():
        return mask.clone()
    distance = torch.from_numpy(np.sqrt(squared_distances(inside.numpy()), dtype=np.float64))
    return torch.where(mask == 0, (EDGE - distance / FALLOFF).to(mask.dtype), mask)


def squared_distances(inside: npt.NDArray[np.bool_]) -> Squares:
    """Return the exact squared distance, in pixels², of every pixel of [H, W] to the nearest one that is True.

    uint16 where every distance in so large an image fits, else int32.
    """
    return squares_outside(np.logical_not(inside).view(np.uint8))


def squares_outside(outside: npt.NDArray[np.uint8]) -> Squares:
    """Return `squared_distances` to the pixels of [H, W] that are 0; there is at least one.

    OpenCV's float32 transform is several times as fast as SciPy's. Squared distances are integers, so rounding its
    squares gives them exactly, as long as they are small enough for float32 to tell apart.
    """
    height, width = outside.shape
    longest = height * height + width * width
    if longest > _EXACT_IN_FLOAT32:
        squared: npt.NDArray[np.float64] = np.asarray(distance_transform_edt(outside), dtype=np.float64) ** 2
        return np.rint(squared).astype(np.int32)
    distances = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    if longest <= _MOST_UINT16:
        small: npt.NDArray[np.uint16] = cv2.multiply(distances, distances, dtype=cv2.CV_16U)  # rounds
        return small
    large: npt.NDArray[np.int32] = cv2.multiply(distances, distances, dtype=cv2.CV_32S)
    return large


def write_smooth(squared: Squares, out: npt.NDArray[np.float32]) -> None:
    """Write the smooth silhouette of a binary mask into `out` [H, W], from its squared distances; 0 is inside."""
    if squared.dtype == np.uint16:
        cv2.LUT(squared, _falloff(_MOST_UINT16 + 1), out)
    else:
        # No index is out of range; clip is the mode without a check.
        np.take(_falloff(squared.shape[0] ** 2 + squared.shape[1] ** 2 + 1), squared, mode="clip", out=out)


@functools.lru_cache(maxsize=4)
def _falloff(count: int) -> npt.NDArray[np.float32]:
    """Return the values of smooth silhouettes at squared distances 0 (inside) … count - 1."""
    values = (EDGE - np.sqrt(np.arange(count, dtype=np.float64)) / FALLOFF).astype(np.float32)
    values[0] = 1.0
    return values
