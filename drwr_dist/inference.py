"""A trained run as a function from images to points: what `drwr_dist.load` returns and `predict` runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drwr_dist.data.batch import as_tensor
from drwr_dist.errors import UsageError
from drwr_dist.image_files import colours_and_alpha, mask_levels
from drwr_dist.images import frame, load_image, load_mask, prepare
from drwr_dist.pretrained import located
from drwr_dist.run import TrainedRun, load_run

CROPS = ("auto", "always", "never")

# A file; a Pillow image; or pixels uint8 [H, W, 3] RGB or [H, W, 4] RGBA
ImageLike = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]


class ImageToPoints:
    """Call it with an image; it returns points [N, 3] in the object frame (the unit cube, +Y up).

    A network that learnt without known cameras (`pose.mode=predict`) chose a frame of its own: its points are in that
    one, turned against the object frame. `evaluate` knows by how much: it has the training views.
    """

    def __init__(self, run: TrainedRun, device: str = "auto"):
        name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        self.run = run
        self.device = torch.device(name)
        self.network = run.model.to(self.device)

    def __call__(self, image: ImageLike, mask: ImageLike | None = None, crop: str = "auto") -> NDArray[np.float32]:
        """Predict points float32 [N, 3] from one image.

        Args:
            image: a file (turned as its orientation tag says), a Pillow image, or pixels uint8 [H, W, 3] or
                [H, W, 4]. Its alpha, where it has one that is not opaque, cuts the object out.
            mask: a file, a Pillow image, or pixels uint8 [H, W]: cuts the object out instead.
            crop: auto | always | never, see `drwr_dist.images.frame`.

        Raises:
            DataError: a file that is no image, a mask's file of another size, or a mask that says nothing.
            UsageError: pixels of another shape or size, or another crop.
        """
        points: NDArray[np.float32] = self.batch([self.prepare(image, mask, crop)])[0]
        return points

    def prepare(self, image: ImageLike, mask: ImageLike | None = None, crop: str = "auto") -> NDArray[np.uint8]:
        """Return the network's input, uint8 RGB [size, size, 3]; arguments and errors as those of the call."""
        if crop not in CROPS:
            raise UsageError(f"crop={crop}: choose one of {', '.join(CROPS)}")
        size, background = self.run.image_size, self.run.config.data.background
        if isinstance(image, (str, os.PathLike)) and (mask is None or isinstance(mask, (str, os.PathLike))):
            return prepare(Path(image), size, background, crop, Path(mask) if mask is not None else None)
        pixels, alpha = _pixels(image)
        if mask is not None:
            alpha = _mask_pixels(mask)
            if alpha.shape != pixels.shape[:2]:
                raise UsageError(f"mask: {list(alpha.shape)} pixels, but the image has {list(pixels.shape[:2])}")
        return frame(pixels, alpha, size, background, crop, "image")

    @torch.no_grad()
    def batch(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Predict points float32 [B, N, 3] from prepared images uint8 [size, size, 3]."""
        dtype = next(self.network.parameters()).dtype
        points = self.network(torch.stack([as_tensor(image) for image in images]).to(self.device, dtype))
        return np.asarray(points.float().cpu().numpy(), dtype=np.float32)


def load(run: str | os.PathLike[str], checkpoint: str = "auto", device: str = "auto") -> ImageToPoints:
    """Load a trained run as a function from images to points.

    Args:
        run: folder or URL of the run: <storage>/<name>; `pretrained`: the network that comes with the package.
        checkpoint: auto (what the run's evaluation.checkpoint says) | last | best | a number of steps.
        device: auto (a GPU where there is one), or a name that PyTorch knows.

    Raises:
        UsageError, TrainingError, DataError: as `drwr_dist.run.load_run`.

    Examples:
        >>> import drwr_dist
        >>> model = drwr_dist.load("runs/mine")
        >>> model("photo.jpg").shape  # float32, the unit cube, +Y up
        (64, 3)
    """
    return ImageToPoints(load_run(located(run), checkpoint), device)


def _pixels(image: ImageLike) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    if isinstance(image, (str, os.PathLike)):
        return load_image(Path(image))
    if isinstance(image, Image.Image):
        return colours_and_alpha(image)
    if image.ndim != 3 or image.shape[-1] not in (3, 4) or image.dtype != np.uint8:
        raise UsageError(f"image: give uint8 [H, W, 3] or [H, W, 4], not {image.dtype} {list(image.shape)}")
    opaque = image.shape[-1] == 3 or bool((image[..., 3] == 255).all())
    return image[..., :3], None if opaque else image[..., 3]


def _mask_pixels(mask: ImageLike) -> NDArray[np.uint8]:
    if isinstance(mask, (str, os.PathLike)):
        return load_mask(Path(mask))
    if isinstance(mask, Image.Image):
        return mask_levels(mask)
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.bool_):
        raise UsageError(f"mask: give uint8 or bool [H, W], not {mask.dtype} {list(mask.shape)}")
    return mask.astype(np.uint8) * 255 if mask.dtype == np.bool_ else mask
