"""From any image file to what the network takes: framed, scaled and composited as the training images are."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.faults import FOREGROUND, mask_fault
from drwr_dist.data.sample import composite
from drwr_dist.errors import DataError
from drwr_dist.image_files import border, colours_and_alpha, is_turned, mask_levels, read_image

# How the training images are framed: the unit cube's object, seen from distance 2 with focal length 1.875. The
# longer side of its silhouette's box is this fraction of the frame, typically.
TYPICAL_EXTENT = 0.75
# A silhouette whose box is at least this long and at most this far off the centre is framed like that already.
FRAMED_EXTENT = (0.45, 1.0)
FRAMED_OFFSET = 0.15

BORDER_TOLERANCE = 0.1  # grey levels by which a photographed background may differ from the one that is meant
_LONGEST_SIDE = 10_000  # pixels of a square that is cut out; a longer and narrow picture is made smaller first


def load_image(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Read an image file of any format that Pillow knows, turned as its orientation tag says.

    Returns:
        RGB [H, W, 3] and alpha [H, W], or None where the image has no alpha channel (or an opaque one).

    Raises:
        DataError: the file is missing, not an image, cut short, or too large; names the file.
    """
    return colours_and_alpha(read_image(path, upright=True))


def load_mask(path: Path) -> NDArray[np.uint8]:
    """Read a mask, turned as its orientation tag says; [H, W], 255 is the object.

    What makes a mask is what `shards import` takes for one: see `drwr_dist.image_files.mask_levels`.

    Raises:
        DataError: as `load_image`.
    """
    return mask_levels(read_image(path, upright=True))


def prepare(
    path: Path, size: int, background: float, crop: str = "auto", mask: Path | None = None
) -> NDArray[np.uint8]:
    """Read an image, and the mask that cuts its object out, and make it a network input: see `frame`.

    Raises:
        DataError: not an image, a mask of another size, or an alpha channel that is empty or full; names the file.
    """
    image, alpha = load_image(path)
    if mask is not None:
        alpha = load_mask(mask)
        if alpha.shape != image.shape[:2]:
            sizes = [f"{width} × {height}" for height, width in (alpha.shape, image.shape[:2])]
            tag = ", turned as its orientation tag says" if is_turned(path) else ""
            raise DataError(f"{mask}: {sizes[0]} pixels, but {path} has {sizes[1]}{tag}")
        if is_turned(path) and not is_turned(mask):
            warnings.warn(
                f"{path}: turned as its orientation tag says; {mask} has no such tag, and must be the mask of the "
                "upright picture",
                stacklevel=2,
            )
    return frame(image, alpha, size, background, crop, str(mask or path))


def frame(
    image: NDArray[np.uint8], alpha: NDArray[np.uint8] | None, size: int, background: float, crop: str, name: str
) -> NDArray[np.uint8]:
    """Make an image a network input.

    With alpha, the object is cut out, laid over the background, and framed like the training images: `auto` leaves
    an image that is framed so already, `always` and `never` say what they do. Without alpha, the image is taken
    as it is, with the background added around it where it is not square.

    Args:
        image: RGB [H, W, 3].
        alpha: [H, W], 255 is the object; None: there is none.
        size: pixels a side of the network's input.
        background: grey level in [0, 1].
        crop: auto | always | never.
        name: of what the alpha came from, for the error.

    Returns:
        uint8 RGB [size, size, 3].

    Raises:
        DataError: an alpha channel that is empty, or a mask that is full.

    Warns:
        UserWarning: there is no alpha, and the picture's border is not of the background's colour; or the alpha
            holds most of the border, as one that is inverted does.
    """
    if alpha is None:
        if not _lies_on(image, background):
            warnings.warn(
                f"{name}: nothing cuts the object out (no alpha channel, no mask), and what surrounds it is not the "
                f"background that the network knows (grey level {background:g}, 1 is white): expect a poor shape",
                stacklevel=2,
            )
        alpha = np.full(image.shape[:2], 255, dtype=np.uint8)
        box = _padded(alpha)
    else:
        if reason := mask_fault(alpha):
            raise DataError(f"{name}: {reason.split(';')[0]}")  # the rest is how views of a dataset are mended
        if _holds_border(alpha):
            warnings.warn(
                f"{name}: most of the picture's border belongs to the object by this mask: it must be white on the "
                "object, black elsewhere",
                stacklevel=2,
            )
        box = _framing_box(alpha, crop)
    return composite(*_cut(image, alpha, box, size), background)


def _lies_on(image: NDArray[np.uint8], background: float) -> bool:
    """Say whether most of the picture's border is of the background's colour."""
    levels = border(image).astype(np.float32) / 255
    return bool((np.abs(levels - background).max(axis=-1) <= BORDER_TOLERANCE).mean() >= 0.5)


def _holds_border(alpha: NDArray[np.uint8]) -> bool:
    return bool((border(alpha) >= FOREGROUND).mean() > 0.5)


def _padded(alpha: NDArray[np.uint8]) -> tuple[float, float, float]:
    height, width = alpha.shape
    return width / 2, height / 2, float(max(width, height))


def _framing_box(alpha: NDArray[np.uint8], crop: str) -> tuple[float, float, float]:
    """Return the square (centre x, centre y, side) in pixels that becomes the frame."""
    rows, columns = np.nonzero(alpha >= FOREGROUND)
    left, right = float(columns.min()), float(columns.max()) + 1
    top, bottom = float(rows.min()), float(rows.max()) + 1
    extent, x, y = max(right - left, bottom - top), (left + right) / 2, (top + bottom) / 2
    whole_x, whole_y, side = _padded(alpha)
    offset = max(abs(x - whole_x), abs(y - whole_y)) / side
    framed = FRAMED_EXTENT[0] <= extent / side <= FRAMED_EXTENT[1] and offset <= FRAMED_OFFSET
    if crop == "never" or (crop == "auto" and framed):
        return whole_x, whole_y, side
    return x, y, extent / TYPICAL_EXTENT


def _cut(
    image: NDArray[np.uint8], alpha: NDArray[np.uint8], box: tuple[float, float, float], size: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut a square out of RGB and alpha (transparent outside the image) and scale it to `size`."""
    if box == _padded(alpha) and alpha.shape == (size, size):
        return image, alpha  # already what the network takes: not a pixel changes
    x, y, side = box
    # Premultiplied, so that colours under transparent pixels don't bleed into the object.
    opacity = alpha.astype(np.float32) / 255.0
    layers = np.dstack([image.astype(np.float32) * opacity[..., None], opacity])
    if side > _LONGEST_SIDE:
        factor = _LONGEST_SIDE / side
        shape = [max(1, round(length * factor)) for length in reversed(alpha.shape)]
        layers = cv2.resize(layers, shape, interpolation=cv2.INTER_AREA)
        x, y, side = x * factor, y * factor, side * factor
    left, top, pixels = round(x - side / 2), round(y - side / 2), max(1, round(side))
    square = np.zeros((pixels, pixels, 4), dtype=np.float32)
    height, width = layers.shape[:2]
    x0, x1 = max(left, 0), min(left + pixels, width)
    y0, y1 = max(top, 0), min(top + pixels, height)
    square[y0 - top : y1 - top, x0 - left : x1 - left] = layers[y0:y1, x0:x1]
    scaled = cv2.resize(square, (size, size), interpolation=cv2.INTER_AREA if pixels > size else cv2.INTER_LINEAR)
    opacity = scaled[..., 3:]
    colour = np.divide(scaled[..., :3], opacity, out=np.zeros_like(scaled[..., :3]), where=opacity > 1e-6)
    return np.rint(colour.clip(0, 255)).astype(np.uint8), np.rint(opacity[..., 0] * 255).astype(np.uint8)
