"""Cameras from `transforms.json`, as NeRF, instant-ngp and nerfstudio write it.

Per frame: `file_path` (with or without suffix), `transform_matrix` (camera to world, OpenGL axes: x right, y up, z
backwards), optional `mask_path`. Intrinsics stand at the top or in the frame, which wins: `fl_x`, `fl_y`, `cx`, `cy`,
`w`, `h`, `k1`, `k2`, `k3`, `p1`, `p2`, or only `camera_angle_x` (and `camera_angle_y`).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.sources.lens import Lens
from drwr_dist.sources.posed_view import PosedView, find_image, find_mask, inside, rigid

_PARTS = tuple(f"transforms_{split}.json" for split in ("train", "val", "test"))  # the synthetic NeRF scenes
_MAX_BYTES = 256 * 2**20
_HUGE = 1e12  # more than any intrinsic is; NaN is not below it
_MODELS = ("", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")
OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])


def transform_files(folder: Path) -> list[Path]:
    """Return the files that describe an object: transforms.json, else transforms_train.json and its kin."""
    if (whole := folder / "transforms.json").is_file():
        return [whole]
    return [path for name in _PARTS if (path := folder / name).is_file()]


def read_transforms(root: Path, folder: Path, axes: str = "opengl") -> list[PosedView]:
    """Read all views of an object, in the order of its frames.

    Args:
        root: the input folder; no path may lead out of it.
        folder: of the object.
        axes: of the cameras: opengl, as NeRF tools write them, or opencv (x right, y down, z forward).

    Raises:
        DataError: names the file and the frame: not such a file, a number missing, an image that isn't there.
    """
    return [view for path in transform_files(folder) for view in _read_file(root, path, axes)]


def _read_file(root: Path, path: Path, axes: str) -> list[PosedView]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path}: more than {_MAX_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON that can be read ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("frames"), list) or not content["frames"]:
        raise DataError(f"{path}: no list of frames in it")
    views = []
    for number, frame in enumerate(content["frames"]):
        where = f"{path}: frame {number}"
        if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
            raise DataError(f"{where}: no file_path")
        try:
            view = _view(root, path.parent, {**content, **frame}, axes)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        views.append(replace(view, fault=f"{where}: {view.fault}") if view.fault else view)
    return views


def _view(root: Path, folder: Path, frame: Mapping[str, Any], axes: str) -> PosedView:
    image, fault = find_image(root, folder, frame["file_path"])
    mask = frame.get("mask_path")
    if mask is not None and not isinstance(mask, str):
        raise DataError("mask_path is not a path")
    own_mask = None if fault else find_mask(root, folder, image)
    lens, angle = _lens(frame)
    return PosedView(
        name=frame["file_path"],
        image=image,
        mask=own_mask if mask is None else inside(root, folder, mask),
        lens=lens,
        world_to_camera=_camera(frame, axes),
        field_of_view=angle,
        fault=fault,
    )


def _camera(frame: Mapping[str, Any], axes: str) -> NDArray[np.float64]:
    if "transform_matrix" not in frame:
        raise DataError(f"no transform_matrix{_meant('transform_matrix', frame)}")
    try:
        matrix = np.array(frame["transform_matrix"], dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError("transform_matrix must be [4, 4] numbers") from error
    camera_to_world = rigid(matrix, "transform_matrix")
    if axes == "opengl":
        camera_to_world = camera_to_world @ OPENGL_TO_OPENCV
    result = np.eye(4)
    result[:3, :3] = camera_to_world[:3, :3].T
    result[:3, 3] = -camera_to_world[:3, :3].T @ camera_to_world[:3, 3]
    return result


def _lens(frame: Mapping[str, Any]) -> tuple[Lens | None, float]:
    """Return the lens, or None and the horizontal field of view where the image's size is not given."""
    model = frame.get("camera_model", "")
    if model not in _MODELS or frame.get("is_fisheye") or _number(frame, "k4", 0.0):
        raise DataError(f"camera model {model or 'fisheye'!r} is not read; undistort the images first")
    angle_x, angle_y = _number(frame, "camera_angle_x", 0.0), _number(frame, "camera_angle_y", 0.0)
    if not (0 <= angle_x < math.pi and 0 <= angle_y < math.pi):
        raise DataError("camera_angle_x and camera_angle_y are radians between 0 and π")
    if "fl_x" not in frame and not angle_x:
        hint = _meant("camera_angle_x", frame)
        raise DataError(f"no focal length: neither camera_angle_x nor fl_x is given{hint}")
    if "w" not in frame or "h" not in frame:
        if "fl_x" in frame or angle_y:
            raise DataError("w and h (pixels) are needed with fl_x, or camera_angle_x alone")
        return None, angle_x
    width, height = _number(frame, "w"), _number(frame, "h")
    if width != int(width) or height != int(height):
        raise DataError("w and h must be whole numbers of pixels")
    fx = _number(frame, "fl_x") if "fl_x" in frame else 0.5 * width / math.tan(0.5 * angle_x)
    fy = _number(frame, "fl_y", 0.5 * height / math.tan(0.5 * angle_y) if angle_y else fx)
    bends = {name: _number(frame, name, 0.0) for name in ("k1", "k2", "k3", "p1", "p2")}
    centre = _number(frame, "cx", width / 2), _number(frame, "cy", height / 2)
    lens = Lens(int(width), int(height), fx, fy, *centre, **bends)
    if reason := lens.fault():
        raise DataError(reason)
    return lens, 0.0


def _meant(key: str, frame: Mapping[str, Any]) -> str:
    """Return a hint where a key that no file of this kind has looks like one that is missing."""
    near = difflib.get_close_matches(key, [name for name in frame if name != "camera_angle_y"], 1)
    return f" (is {near[0]} meant to be it?)" if near else ""


def _number(frame: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = frame.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_HUGE < value < _HUGE:
        raise DataError(f"{name} must be a number below {_HUGE:g}, is {str(value)[:40]}")
    return float(value)
