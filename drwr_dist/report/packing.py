"""Point clouds, distances and pictures in few bytes of text: what a report embeds of an object. Pure."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DISTANCE_SCALE = 0.1  # sides of the unit cube: the largest distance that colours tell apart
_STEPS = 32767  # of a coordinate between 0 and the largest of the object
QUALITY = 85  # of WebP


def pack_clouds(clouds: Sequence[NDArray[np.floating]], distances: Sequence[NDArray[np.floating]]) -> tuple[str, float]:
    """Pack clouds [N, 3] and distances [N] of one object: all coordinates as int16, then all distances as uint8.

    Returns:
        base64 text, and the scale: coordinate = int16 / 32767 · scale. A distance is uint8 / 255 · DISTANCE_SCALE.
    """
    scale = max([1e-6, *(float(np.abs(cloud).max()) for cloud in clouds)])
    coordinates = [np.rint(np.asarray(cloud, np.float64) / scale * _STEPS).astype("<i2").tobytes() for cloud in clouds]
    shades = [np.rint(np.clip(row / DISTANCE_SCALE, 0, 1) * 255).astype(np.uint8).tobytes() for row in distances]
    return base64.b64encode(b"".join(coordinates + shades)).decode("ascii"), scale


def picture(image: NDArray[np.uint8], side: int | None = None) -> str:
    """Return RGB [H, W, 3] or grey [H, W] as a WebP data URI, scaled to side × side where that is given."""
    content = Image.fromarray(image)
    if side:
        content = content.resize((side, side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    content.save(buffer, format="WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def strip(tiles: NDArray[np.uint8]) -> str:
    """Put tiles [V, H, W(, 3)] side by side into one picture."""
    return picture(np.concatenate(list(tiles), axis=1))
