"""Pictures for the tests of `predict`."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image


def disc(size: int, centre: tuple[int, int], radius: int) -> np.ndarray:
    """A grey disc on transparent ground: uint8 RGBA [size, size, 4]."""
    picture = np.zeros((size, size, 4), dtype=np.uint8)
    cv2.circle(picture, centre, radius, (90, 120, 150, 255), thickness=-1)
    return picture


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is the right side
    return exif
