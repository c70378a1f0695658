"""Shards from the renders that DPC and DRWR were trained on.

    DIR/render/<synset>/<model>/render_<n>.png   RGBA         (also DIR/renders/…)
                                camera_<n>.mat   pos [1, 3], extrinsic [4, 4]
                                depth_<n>.png    only read with depth=true
    DIR/gt/downsampled/<synset>/<model>.mat      points [M, 3]; optional (also DIR/gt/<synset>/…)
    DIR/splits/<synset>_train.txt, …             optional (also DIR/…, or splits=FOLDER)

Cameras become the package's own by the released formulas. The ground truth is in the frame of the quaternion path;
with `camera=extrinsic`, whose object is turned by 180° about the vertical axis, the points are turned with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.depth import STEP_KEY
from drwr_dist.data.png import MAX_SIDE
from drwr_dist.data.sample import ObjectSample
from drwr_dist.data.writer import EncodedSample
from drwr_dist.errors import DataError, UsageError
from drwr_dist.pool import run_ordered
from drwr_dist.sources.finishing import (
    ViewSettings,
    choose_splits,
    choose_views,
    finish_or_skip,
    in_order,
    wanted_categories,
)
from drwr_dist.sources.geometry import Similarity
from drwr_dist.sources.mat import read_mat
from drwr_dist.sources.mesh_folders import object_id
from drwr_dist.sources.meshes import Progress, Skipped
from drwr_dist.sources.pictures import read_levels, read_picture, resample
from drwr_dist.sources.released_splits import read_lists

LICENCE = "ShapeNet terms of use"
HALF_TURN = np.diag([-1.0, 1.0, -1.0])  # by which the object of the matrix path is turned
_RENDER = re.compile(r"render_(\d{1,9})\.png")


@dataclass(frozen=True)
class Model:
    """One rendered model to import."""

    key: str  # <synset>/<model>
    folder: Path
    numbers: tuple[int, ...]  # of its views, growing
    ground_truth: Path | None
    settings: ViewSettings
    split: str = ""


def import_dpc(
    folder: str, settings: ViewSettings, progress: Progress, done: frozenset[str] = frozenset()
) -> Iterator[EncodedSample | Skipped]:
    """Convert the renders of a folder; yields samples of train, then val, then test, and what was skipped.

    What is in `done` is left out.

    Raises:
        UsageError: the folder isn't laid out as above, or a category isn't there.
        DataError: a model can't be used and `skip_bad` is false.
    """
    root = Path(folder)
    models, splits = list_models(root, settings)
    yield from _without_renders(models, splits, settings.skip_bad)
    usable = {key: model for key, model in models.items() if model.numbers and key in splits}
    order = in_order({key: splits[key] for key in usable}, settings.seed)
    jobs = [replace(usable[key], split=splits[key]) for key in order]
    jobs = [job for job in jobs if job.key not in done]
    for result in run_ordered(convert_model, jobs, settings.workers):
        progress("converting", len(jobs))
        yield result


def list_models(root: Path, settings: ViewSettings) -> tuple[dict[str, Model], dict[str, str]]:
    """Find the models of a folder and their splits.

    Returns:
        Key → model, for every model that is rendered or listed (without views where it is only listed), and
        key → split.

    Raises:
        UsageError: no renders there.
        DataError: a split list is damaged.
    """
    renders = next((root / name for name in ("render", "renders") if (root / name).is_dir()), None)
    if renders is None:
        raise UsageError(f"input={root}: no folder render/<synset>/<model>/render_0.png in it")
    synsets = [path.name for path in renders.iterdir() if path.is_dir() and not path.name.startswith(".")]
    models: dict[str, Model] = {}
    splits: dict[str, str] = {}
    unlisted: list[str] = []
    for synset in wanted_categories(synsets, settings.categories, f"input={root}"):
        lists = read_lists(_list_folders(root, settings), synset)
        names = {path.name for path in (renders / synset).iterdir() if path.is_dir()} | set(lists or ())
        for name in sorted(names):
            key = f"{object_id(synset)}/{object_id(name)}"
            if key in models:
                raise DataError(f"{renders / synset}: two models become {key}; rename one of them")
            folder = renders / synset / name
            models[key] = Model(key, folder, _views(folder), ground_truth_file(root, synset, name), settings)
            if lists is None:
                unlisted.append(key)
            elif name in lists:
                splits[key] = lists[name]
    if settings.splits is not None and not Path(settings.splits).is_dir():
        return models, choose_splits([key for key, model in models.items() if model.numbers], settings)
    return models, splits | choose_splits(unlisted, replace(settings, splits=None))


def _list_folders(root: Path, settings: ViewSettings) -> list[Path]:
    """Return where the released split lists may lie; a file of `splits` replaces them."""
    if settings.splits is None:
        return [root / "splits", root]
    return [Path(settings.splits)] if Path(settings.splits).is_dir() else []


def _views(folder: Path) -> tuple[int, ...]:
    if not folder.is_dir():
        return ()
    found = [match for path in folder.iterdir() if (match := _RENDER.fullmatch(path.name))]
    return tuple(sorted(int(match[1]) for match in found))


def ground_truth_file(root: Path, synset: str, model: str) -> Path | None:
    """Return where a model's ground truth lies, or None where there is none."""
    places = (root / "gt" / "downsampled" / synset, root / "gt" / synset)
    return next((path for place in places if (path := place / f"{model}.mat").is_file()), None)


def _without_renders(models: dict[str, Model], splits: dict[str, str], skip_bad: bool) -> Iterator[Skipped]:
    """Report models that are listed but not rendered, or rendered but not listed."""
    for key, model in models.items():
        if not model.numbers:
            reason = f"{model.folder}: no render_<n>.png, but it is in a split list or has a folder"
            if not skip_bad:
                raise DataError(f"{reason}; skip_bad=true leaves it out")
            yield Skipped(key, reason)
        elif key not in splits:
            yield Skipped(key, "in none of the split lists")


def convert_model(model: Model) -> EncodedSample | Skipped:
    """Convert one model."""
    return finish_or_skip(model.key, model.split, model.settings, lambda: make_sample(model))


def make_sample(model: Model) -> ObjectSample:
    """Read the views, cameras and ground truth of a model.

    Raises:
        DataError: names the file; too few views, an image without alpha or not square, a damaged camera.
    """
    settings = model.settings
    numbers = [model.numbers[place] for place in choose_views(model.key, len(model.numbers), settings)]
    views = [_read_render(model.folder / f"render_{number}.png", settings.image_size) for number in numbers]
    cameras = [read_camera(model.folder / f"camera_{number}.mat", settings.camera) for number in numbers]
    depths = None
    if settings.depth:
        depths = np.stack(
            [_read_depth(model.folder / f"depth_{number}.png", settings.image_size) for number in numbers]
        )
    points = None if model.ground_truth is None else read_points(model.ground_truth, settings.camera)
    return ObjectSample(
        key=model.key,
        images=np.stack([image for image, _ in views]),
        masks=np.stack([alpha for _, alpha in views]),
        world_to_camera=np.stack(cameras),
        focal_length=np.full(len(views), settings.focal_length),
        depths=depths,
        points=points,
        meta=released_meta(model.key, "dpc", settings.camera) | ({STEP_KEY: None} if settings.depth else {}),
    )


def released_meta(key: str, source: str, camera: str) -> dict[str, object]:
    """Return what meta.json says about a released model; its group is itself."""
    category, name = key.split("/", 1)
    return {
        "category": category,
        "object_id": name,
        "source": source,
        "licence": LICENCE,
        "near_duplicate_group": key,
        "camera_path": camera,
        "similarity": Similarity(1.0, object_rotation(camera), np.zeros(3)).to_json(),
    }


def object_rotation(camera: str) -> NDArray[np.float64]:
    """Return the rotation [3, 3] from the ground truth's frame to the frame of a camera path."""
    return HALF_TURN if camera == "extrinsic" else np.eye(3)


def _read_render(path: Path, size: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    image, alpha = read_picture(path)
    if alpha is None:
        raise DataError(f"{path}: no alpha channel; the renders are RGBA, transparent outside of the object")
    if image.shape[0] != image.shape[1] or len(image) > MAX_SIDE:
        raise DataError(f"{path}: {image.shape[1]} × {image.shape[0]} pixels; renders are square, at most {MAX_SIDE}")
    return resample(image, alpha, size)


def _read_depth(path: Path, size: int) -> NDArray[np.uint16]:
    """Read a depth image as it is: its scale is the renderer's own."""
    levels = read_levels(path)
    if levels.shape[0] != levels.shape[1] or len(levels) > MAX_SIDE:
        raise DataError(f"{path}: {levels.shape[1]} × {levels.shape[0]} pixels; depth is square, at most {MAX_SIDE}")
    nearest = (2 * np.arange(size) + 1) * len(levels) // (2 * size)  # depths must not be averaged
    return levels[np.ix_(nearest, nearest)]


def read_camera(path: Path, camera: str) -> NDArray[np.float64]:
    """Read one camera file: world_to_camera [4, 4] by the path `camera` (position or extrinsic)."""
    name, shapes = ("pos", ((3,),)) if camera == "position" else ("extrinsic", ((4, 4), (3, 4)))
    value = read_mat(path, name, max_values=16)
    value = value.ravel() if camera == "position" else value
    if value.shape not in shapes:
        raise DataError(f"{path}: {name} is {list(value.shape)}, expected {' or '.join(str(list(s)) for s in shapes)}")
    try:
        return np.asarray(convert_cameras(value[None], camera)[0])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


def convert_cameras(values: NDArray[np.float64], camera: str) -> NDArray[np.float64]:
    """Convert camera positions [V, 3] or extrinsics [V, 4, 4] by the released formulas: world_to_camera [V, 4, 4].

    Raises:
        ValueError: a position is zero.
    """
    import torch

    from drwr_dist.camera import world_to_camera_from_extrinsic, world_to_camera_from_position

    convert: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "position": world_to_camera_from_position,
        "extrinsic": world_to_camera_from_extrinsic,
    }
    return np.asarray(convert[camera](torch.from_numpy(np.array(values, dtype=np.float64))).numpy())


def read_points(path: Path, camera: str) -> NDArray[np.float32]:
    """Read ground truth [M, 3] and turn it into the frame of the camera path."""
    points = read_mat(path, "points")
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise DataError(f"{path}: points is {list(points.shape)}, expected [M, 3]")
    return np.asarray(points @ object_rotation(camera).T, dtype=np.float32)
