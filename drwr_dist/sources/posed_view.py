"""A photograph with its camera, and where its mask lies; paths that a file names never lead out of the input folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.faults import is_rotation
from drwr_dist.errors import DataError
from drwr_dist.sources.lens import Lens

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
_MASK_FOLDERS = ("masks", "mask")


@dataclass(frozen=True)
class PosedView:
    """One view of an object."""

    name: str  # as the source calls it
    image: Path  # there is no such file where `fault` says so
    mask: Path | None  # None: the image's alpha, if it has one
    lens: Lens | None  # None: at the image's own size, of the horizontal field of view below
    world_to_camera: NDArray[np.float64]  # [4, 4], source frame to OpenCV camera
    field_of_view: float = 0.0  # radians, where the lens is None
    fault: str = ""  # why the view can't be used, before anything of it is read

    def lens_of(self, width: int, height: int) -> Lens:
        """Return the lens for the image's real size in pixels.

        Raises:
            DataError: the sizes don't fit, or the lens is impossible.
        """
        if self.lens is not None:
            return self.lens.resized(width, height)
        focal = 0.5 * width / np.tan(0.5 * self.field_of_view)
        return Lens(width, height, focal, focal, width / 2, height / 2)


def inside(root: Path, folder: Path, name: str) -> Path:
    """Return the path of a file that a description names, relative to the description's folder.

    Raises:
        DataError: it lies outside of the input folder.
    """
    try:
        path = (folder / name.replace("\\", "/")).resolve()
        allowed = path.is_relative_to(root.resolve())
    except (ValueError, OSError, RuntimeError) as error:  # NUL bytes, loops of links
        raise DataError(f"{folder}: {name[:200]!r} is not a path ({error})") from error
    if not allowed:
        raise DataError(f"{folder}: {name[:200]!r} leads out of the input folder {root}")
    return path


def find_image(root: Path, folder: Path, name: str) -> tuple[Path, str]:
    """Find an image that a description names, with or without its suffix.

    Returns:
        Its path, and what is wrong where it isn't there.

    Raises:
        DataError: it lies outside of the input folder.
    """
    for suffix in ("", *IMAGE_SUFFIXES):
        path = inside(root, folder, name + suffix)
        with contextlib.suppress(OSError):  # a name that is too long for a file is none
            if path.is_file():
                return path, ""
    return folder / name, f"{folder}: image {name[:200]!r} is not there"


def find_mask(root: Path, folder: Path, image: Path) -> Path | None:
    """Find the mask that lies beside an image: masks/<stem>.png, masks/<file name>.png or <stem>_mask.png.

    Images in folders of their own (images/left/0.jpg) have masks in such folders first (masks/left/0.jpg.png), as
    COLMAP has it for several cameras.

    Args:
        root: the input folder; nothing outside of it is looked at.
        folder: of the object.
        image: resolved path.

    Returns:
        The first that is there, or None.
    """
    names = (f"{image.stem}.png", f"{image.name}.png", image.name)
    places = [
        folder / kind / inner / name for inner in _inner(folder, image) for kind in _MASK_FOLDERS for name in names
    ]
    places += [image.parent.parent / kind / name for kind in _MASK_FOLDERS for name in names]
    places += [image.parent / f"{image.stem}{ending}" for ending in ("_mask.png", ".mask.png")]
    allowed = root.resolve()
    found = (place.resolve() for place in places if place.is_file())
    return next((place for place in found if place != image and place.is_relative_to(allowed)), None)


def _inner(folder: Path, image: Path) -> list[Path]:
    """Return the folders below that of the masks in which an image's mask may lie, the most particular first."""
    try:
        parts = image.parent.relative_to(folder.resolve()).parts
    except ValueError:
        return [Path()]
    return [Path(*parts[start:]) for start in range(len(parts) + 1)]


def check_masks(views: Sequence[PosedView]) -> None:
    """Raise DataError where two images have found the same mask, which can be only one's."""
    owners: dict[Path, Path] = {}
    for view in views:
        if view.mask is None:
            continue
        owner = owners.setdefault(view.mask, view.image)
        if owner != view.image:
            raise DataError(
                f"{view.mask}: the mask of both {owner} and {view.image}; put masks into folders as the images are, "
                "or name them by mask_path"
            )


def rigid(matrix: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """Return a rigid motion [4, 4] with its rotation made exactly orthonormal.

    Raises:
        DataError: it is not a rigid motion to a thousandth.
    """
    if matrix.shape not in ((4, 4), (3, 4)):
        raise DataError(f"{where}: the camera must be a matrix [4, 4], got {list(matrix.shape)}")
    if not np.isfinite(matrix).all():
        raise DataError(f"{where}: the camera has values that are not finite")
    rotation = matrix[:3, :3]
    if not is_rotation(rotation, tolerance=2e-3):
        raise DataError(f"{where}: the camera is not rigid: its rotation is not orthonormal and right-handed")
    left, _, right = np.linalg.svd(rotation)
    result = np.eye(4)
    result[:3, :3], result[:3, 3] = left @ right, matrix[:3, 3]
    return result
