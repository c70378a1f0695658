"""Images as arrays: bounded reading without touching their orientation, and resampling that respects alpha."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drwr_dist.errors import DataError

MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded


def read_picture(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Read an image as its pixels lie in the file; an orientation tag is ignored, as camera calibrations do.

    Returns:
        RGB [H, W, 3], and alpha [H, W] or None where the image has none or is opaque everywhere.

    Raises:
        DataError: missing, not an image, cut short or too large; names the file.
    """
    image = _open(path)
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3]
    return pixels[..., :3].copy(), None if (alpha == 255).all() else alpha.copy()


def read_mask(path: Path) -> NDArray[np.uint8]:
    """Read a mask: alpha where the image has some, else brightness, white on the object; or labels, 0 off the object.

    Labels are the numbers 0 and 1, and the indices of a palette with colours (as DAVIS and Pascal VOC have them).

    Returns:
        [H, W], 0 background … 255 object.

    Raises:
        DataError: as `read_picture`.
    """
    image = _open(path)
    if image.mode == "P" and "transparency" not in image.info:
        colours = np.asarray(image.convert("RGB"))
        if (colours != colours[..., :1]).any():
            return np.where(np.asarray(image) > 0, np.uint8(255), np.uint8(0))
        image = image.convert("RGB")
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip at 255
        return _eight_bits(np.asarray(image))
    pixels = np.asarray(image.convert("RGBA"))
    if not (pixels[..., 3] == 255).all():
        return pixels[..., 3].copy()
    return _eight_bits(pixels[..., :3].max(axis=-1))


def _eight_bits(levels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Bring levels of 16 or 8 bits, or 0 and 1, to 0 … 255; whichever the brightest of them tells."""
    wide = np.clip(levels.astype(np.int64), 0, 65535)
    brightest = int(wide.max())
    scaled = wide // 257 if brightest > 255 else wide * 255 if brightest == 1 else wide
    return scaled.astype(np.uint8)


def read_levels(path: Path) -> NDArray[np.uint16]:
    """Read an image of one quantity, of 8 or 16 bits, without rescaling it: [H, W].

    Raises:
        DataError: as `read_picture`, or it has colours.
    """
    pixels = np.asarray(_open(path))
    if pixels.ndim == 3 and pixels.shape[2] >= 3 and (pixels[..., :1] == pixels[..., :3]).all():
        pixels = pixels[..., 0]  # grey that was saved as RGB(A)
    if pixels.ndim != 2 or pixels.dtype.kind not in "ui" or pixels.min() < 0 or pixels.max() > 65535:
        raise DataError(f"{path}: not a grey image of 8 or 16 bits")
    return pixels.astype(np.uint16)


def _open(path: Path) -> Image.Image:
    try:
        image: Image.Image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} × {image.height} pixels; at most {MAX_PIXELS} are read")
            image.load()
        return image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not an image that can be read ({error})") from error


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
