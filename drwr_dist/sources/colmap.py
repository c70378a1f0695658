"""Cameras from a COLMAP model in text form: `cameras.txt` and `images.txt`, images in `images/`, masks in `masks/`.

`images.txt` has two lines per image: pose and name, then its 2D points (which may be an empty line). Quaternions
(w, x, y, z) and translations take the world into an OpenCV camera.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.sources.lens import Lens
from drwr_dist.sources.posed_view import PosedView, find_image, find_mask

_PLACES = (".", "sparse/0", "sparse", "text", "colmap_text", "colmap/sparse/0")
_PARAMETERS = {  # of each camera model, in COLMAP's order; f stands for fx and fy
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
}
_MAX_BYTES = 2**30
_POSE_FIELDS = 10  # IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME


def colmap_folder(folder: Path) -> Path | None:
    """Return where an object's model lies, or None where there is none.

    Raises:
        DataError: there is one in binary form only.
    """
    binary = None
    for place in _PLACES:
        if (folder / place / "cameras.txt").is_file() and (folder / place / "images.txt").is_file():
            return folder / place
        if (folder / place / "cameras.bin").is_file():
            binary = folder / place
    if binary is not None:
        raise DataError(
            f"{binary}: a binary COLMAP model; convert it: colmap model_converter --input_path {binary} "
            f"--output_path {binary} --output_type TXT"
        )
    return None


def read_colmap(root: Path, folder: Path, model: Path) -> list[PosedView]:
    """Read all views of an object, in the order of their names.

    Args:
        root: the input folder; no path may lead out of it.
        folder: of the object, which holds `images/` and `masks/`.
        model: folder of cameras.txt and images.txt.

    Raises:
        DataError: names the file and the line: not such a file, an unknown camera, an image that isn't there.
    """
    lenses = read_cameras(model / "cameras.txt")
    images = folder / "images" if (folder / "images").is_dir() else folder
    views = []
    for line, name, camera, matrix in _poses(model / "images.txt"):
        where = f"{model / 'images.txt'}: line {line}"
        if camera not in lenses:
            raise DataError(f"{where}: camera {camera} is not in cameras.txt")
        try:
            path, fault = find_image(root, images, name)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        mask = None if fault else find_mask(root, folder, path)
        fault = f"{where}: {fault}" if fault else ""
        views.append(PosedView(name, path, mask, lenses[camera], matrix, fault=fault))
    if not views:
        raise DataError(f"{model / 'images.txt'}: no image in it")
    return sorted(views, key=lambda view: view.name)


def read_cameras(path: Path) -> dict[int, Lens]:
    """Read cameras.txt: camera id → lens."""
    lenses: dict[int, Lens] = {}
    for line, text in _lines(path):
        if not text or text.startswith("#"):
            continue
        fields = text.split()
        try:
            number, model, width, height = int(fields[0]), fields[1], int(fields[2]), int(fields[3])
            values = [float(field) for field in fields[4:]]
        except (IndexError, ValueError) as error:
            raise DataError(f"{path}: line {line}: not CAMERA_ID, MODEL, WIDTH, HEIGHT and numbers") from error
        names = _PARAMETERS.get(model)
        if names is None:
            raise DataError(
                f"{path}: line {line}: camera model {model} is not read, only {', '.join(_PARAMETERS)}; "
                "undistort the images: colmap image_undistorter"
            )
        if len(values) != len(names):
            raise DataError(f"{path}: line {line}: {model} has {len(names)} parameters, found {len(values)}")
        found = dict(zip(names, values, strict=True))
        focal = found.pop("f", None)
        lens = Lens(width, height, **({"fx": focal, "fy": focal} if focal is not None else {}), **found)
        if reason := lens.fault():
            raise DataError(f"{path}: line {line}: {reason}")
        lenses[number] = lens
    return lenses


def _poses(path: Path) -> Iterator[tuple[int, str, int, NDArray[np.float64]]]:
    """Yield line number, image name, camera id and world_to_camera [4, 4] of each image."""
    lines = _lines(path)
    for line, text in lines:
        if not text or text.startswith("#"):
            continue
        fields = text.split(maxsplit=_POSE_FIELDS - 1)
        try:
            numbers = [float(field) for field in fields[1:8]]
            camera, name = int(fields[8]), fields[9]
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{path}: line {line}: not IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME"
            ) from error
        matrix = np.eye(4)
        matrix[:3, :3] = _rotation(np.array(numbers[:4]), f"{path}: line {line}")
        matrix[:3, 3] = numbers[4:]
        if not np.isfinite(matrix).all():
            raise DataError(f"{path}: line {line}: the camera is not finite")
        yield line, name, camera, matrix
        _skip_points(lines, path)


def _skip_points(lines: Iterator[tuple[int, str]], path: Path) -> None:
    """Pass over the line of 2D points that belongs to each image."""
    line, text = next(lines, (0, ""))
    fields = text.split()
    if len(fields) % 3 or (fields and not _is_number(fields[-1])):
        raise DataError(f"{path}: line {line}: 2D points expected (three numbers each, or an empty line)")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rotation(quaternion: NDArray[np.float64], where: str) -> NDArray[np.float64]:
    """Return the rotation [3, 3] of a quaternion (w, x, y, z)."""
    length = float(np.linalg.norm(quaternion))
    if not np.isfinite(length) or abs(length - 1) > 1e-2:
        raise DataError(f"{where}: the quaternion has length {length:g}, not 1")
    w, x, y, z = quaternion / length
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: more than {_MAX_BYTES} bytes")
        with path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, start=1):
                yield number, text.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error
