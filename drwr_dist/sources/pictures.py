"""Images as arrays, as they lie in their files: a camera knows no orientation tag; resampling that respects alpha."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.image_files import colours_and_alpha, mask_levels, read_image


def read_picture(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Read an image as its pixels lie in the file; an orientation tag is ignored, as camera calibrations do.

    Returns:
        RGB [H, W, 3], and alpha [H, W] or None where the image has none or is opaque everywhere.

    Raises:
        DataError: missing, not an image, cut short or too large; names the file.
    """
    return colours_and_alpha(read_image(path))


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read a mask as its pixels lie in the file, [H, W], 255 on the object: see `drwr_dist.image_files.mask_levels`.

    Raises:
        DataError: as `read_picture`.
    """
    return mask_levels(read_image(path))


def read_levels(path: Path) -> NDArray[np.uint16]:
    """Read an image of one quantity, of 8 or 16 bits, without rescaling it: [H, W].

    Raises:
        DataError: as `read_picture`, or it has colours.
    """
    pixels = np.asarray(read_image(path))
    if pixels.ndim == 3 and pixels.shape[2] >= 3 and (pixels[..., :1] == pixels[..., :3]).all():
        pixels = pixels[..., 0]  # grey that was saved as RGB(A)
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui" or pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(f"{path}: not a grey image of 8 or 16 bits")
    return pixels.astype(np.uint16)


def unpremultiply(
    colour: NDArray[np.float32], alpha: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Divide colour by alpha and round both.

    Args:
        colour: [..., 3], already multiplied by alpha, 0 … 255.
        alpha: [...], 0 … 1; clipped to that range.

    Returns:
        RGB [..., 3], 0 where the rounded alpha is 0, and alpha [...], both uint8.
    """
    level = np.rint(255 * np.clip(alpha, 0.0, 1.0)).astype(np.uint8)
    divisor = np.where(level > 0, np.maximum(alpha, 0.5 / 255), np.inf)[..., None]
    return np.rint(np.clip(colour / divisor, 0.0, 255.0)).astype(np.uint8), level


def resample(
    image: NDArray[np.uint8], alpha: NDArray[np.uint8], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Bring a square image to another size: averages areas downwards, interpolates linearly upwards.

    Args:
        image: [H, H, 3] RGB, not premultiplied.
        alpha: [H, H].
        size: pixels a side of the result; the image's own size returns it unchanged, but for RGB 0 where alpha is 0.

    Returns:
        RGB [size, size, 3] and alpha [size, size].
    """
    if len(image) == size:
        return image * (alpha > 0)[..., None], alpha
    opacity = alpha.astype(np.float32) / 255.0
    stacked = np.concatenate([image * opacity[..., None], opacity[..., None]], axis=-1)
    method = cv2.INTER_AREA if size < len(image) else cv2.INTER_LINEAR
    scaled = np.asarray(cv2.resize(stacked, (size, size), interpolation=method), dtype=np.float32)
    return unpremultiply(scaled[..., :3], scaled[..., 3])
