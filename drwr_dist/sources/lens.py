"""The pinhole camera with OpenCV's distortion: from directions to pixels and back.

Pixel coordinates are continuous, x right, y down, (0, 0) at the image's upper left corner: the first pixel is centred
at (0.5, 0.5), as COLMAP and the NeRF data have it (OpenCV itself has that centre at (0, 0)). Directions are points of
the plane at depth 1 of an OpenCV camera: (X / Z, Y / Z).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError

_ITERATIONS = 50  # of Newton's method; it needs about five
_EXACT = 1e-3  # pixels by which a direction may miss its pixel when it is projected again


@dataclass(frozen=True)
class Lens:
    """Intrinsics of one image, in pixels."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    k1: float = 0.0  # radial
    k2: float = 0.0
    p1: float = 0.0  # tangential
    p2: float = 0.0
    k3: float = 0.0

    def fault(self) -> str | None:
        """Say what is wrong with the numbers, or return None."""
        if self.width <= 0 or self.height <= 0:
            return f"an image of {self.width} × {self.height} pixels"
        numbers = (self.fx, self.fy, self.cx, self.cy, self.k1, self.k2, self.p1, self.p2, self.k3)
        if not np.isfinite(numbers).all():
            return "intrinsics that are not finite"
        if self.fx <= 0 or self.fy <= 0:
            return f"focal lengths {self.fx:g} and {self.fy:g} pixels; they must be positive"
        return None

    def resized(self, width: int, height: int) -> Lens:
        """Return the lens of the same image at another resolution.

        Raises:
            DataError: the sides don't have the same proportion.
        """
        if (width, height) == (self.width, self.height):
            return self
        if abs(width * self.height - height * self.width) > max(self.width, self.height):
            raise DataError(
                f"the image has {width} × {height} pixels, its camera {self.width} × {self.height}: cropped or turned?"
            )
        x, y = width / self.width, height / self.height
        scaled = {"fx": self.fx * x, "cx": self.cx * x, "fy": self.fy * y, "cy": self.cy * y}
        return replace(self, width=width, height=height, **scaled)


def distort(lens: Lens, directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where directions [..., 2] appear in the image, in pixels [..., 2]."""
    x, y = _bend(lens, directions[..., 0], directions[..., 1])
    return np.stack([lens.fx * x + lens.cx, lens.fy * y + lens.cy], axis=-1)


def _bend(
    lens: Lens, x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    squared = x * x + y * y
    radial = 1 + squared * (lens.k1 + squared * (lens.k2 + squared * lens.k3))
    bent_x = x * radial + 2 * lens.p1 * x * y + lens.p2 * (squared + 2 * x * x)
    bent_y = y * radial + lens.p1 * (squared + 2 * y * y) + 2 * lens.p2 * x * y
    return bent_x, bent_y


def undistort(lens: Lens, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the directions [..., 2] that appear at pixels [..., 2], by Newton's method.

    Raises:
        DataError: a pixel of the image has no direction: the distortion folds the image over itself.
    """
    target = np.stack([(pixels[..., 0] - lens.cx) / lens.fx, (pixels[..., 1] - lens.cy) / lens.fy], axis=-1)
    found, step = target.copy(), 1e-6
    for _ in range(_ITERATIONS):
        x, y = found[..., 0], found[..., 1]
        miss_x, miss_y = (bent - target[..., i] for i, bent in enumerate(_bend(lens, x, y)))
        if max(np.abs(miss_x).max(initial=0.0), np.abs(miss_y).max(initial=0.0)) < 1e-12:
            break
        ahead_x, ahead_y = _bend(lens, x + step, y), _bend(lens, x, y + step)
        behind_x, behind_y = _bend(lens, x - step, y), _bend(lens, x, y - step)
        a, c = ((p - m) / (2 * step) for p, m in zip(ahead_x, behind_x, strict=True))
        b, d = ((p - m) / (2 * step) for p, m in zip(ahead_y, behind_y, strict=True))
        determinant = a * d - b * c
        safe = np.where(np.abs(determinant) > 1e-9, determinant, np.inf)
        found = found - np.stack([(d * miss_x - b * miss_y) / safe, (a * miss_y - c * miss_x) / safe], axis=-1)
    if not (np.abs(distort(lens, found) - pixels) < _EXACT).all():
        raise DataError("the lens distortion can't be undone: check k1, k2, k3, p1, p2")
    return found


def reach(lens: Lens) -> float:
    """Return the largest length of a direction that the image shows: beyond, the distortion means nothing."""
    along = np.linspace(0.0, 1.0, 65)
    zero, one = np.zeros_like(along), np.ones_like(along)
    border = [(along, zero), (along, one), (zero, along), (one, along)]
    pixels = np.concatenate([np.stack([x * lens.width, y * lens.height], axis=-1) for x, y in border])
    return float(np.linalg.norm(undistort(lens, pixels), axis=-1).max())
