"""Image files of any kind: read within bounds, and whatever is wrong with one is told with its name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from drwr_dist.errors import DataError

MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded


def read_image(path: Path, upright: bool = False) -> Image.Image:
    """Read an image file of any format that Pillow knows.

    Args:
        path: the file.
        upright: turn it as its orientation tag says; else the pixels are as they lie in the file.

    Raises:
        DataError: missing, not an image, cut short or too large; names the file.
    """
    try:
        image: Image.Image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{path}: {image.width} × {image.height} pixels; at most {MAX_PIXELS} are read")
            image.load()
            return ImageOps.exif_transpose(image) if upright else image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except DataError:
        raise
    except Exception as error:  # a damaged file makes Pillow's readers raise nearly anything
        raise DataError(f"{path}: not an image that can be read ({error or type(error).__name__})") from error


def is_turned(path: Path) -> bool:
    """Say whether an image file has an orientation tag by which its pixels must be turned or mirrored to be upright.

    One that can't be read has none: whoever reads the image tells what is wrong with it. A PNG's tag is looked for
    before its pixels alone: to find one behind them, Pillow would decode them all.
    """
    try:
        with Image.open(path) as image:
            if image.format == "PNG" and "exif" not in image.info:
                return False
            return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    except Exception:  # as in read_image
        return False


def border(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the outermost pixels [2 H + 2 W, ...] of an image [H, W, ...], those of the corners twice."""
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def colours_and_alpha(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return RGB [H, W, 3], and alpha [H, W] or None where the image has none or is opaque everywhere."""
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip nearly all of it to white
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3]
    return pixels[..., :3].copy(), None if (alpha == 255).all() else alpha.copy()


def mask_levels(image: Image.Image) -> NDArray[np.uint8]:
    """Read a mask: alpha where it is not opaque, else brightness, white on the object; or labels, 0 off the object.

    Labels are the numbers 0 and 1, and the indices of a palette with colours (as DAVIS and Pascal VOC have them).

    Returns:
        [H, W], 0 background … 255 object.
    """
    if image.mode == "P" and "transparency" not in image.info:
        colours = np.asarray(image.convert("RGB"))
        if (colours != colours[..., :1]).any():
            return np.where(np.asarray(image) > 0, np.uint8(255), np.uint8(0))
        image = image.convert("RGB")
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip at 255
        return _eight_bits(np.asarray(image))
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3]
    if alpha.min() < 255:
        return alpha.copy()
    return _eight_bits(pixels[..., :3].max(axis=-1))


def _eight_bits(levels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Bring levels of 16 or 8 bits, or 0 and 1, to 0 … 255; whichever the brightest of them tells."""
    wide = np.clip(levels.astype(np.int64), 0, 65535)
    brightest = int(wide.max())
    scaled = wide // 257 if brightest > 255 else wide * 255 if brightest == 1 else wide
    return scaled.astype(np.uint8)
