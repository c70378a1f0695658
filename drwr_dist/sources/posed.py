"""Shards from photographs with known cameras: DIR/<category>/<object>/ with `transforms.json` or a COLMAP text model.

DIR may also hold objects directly, or be an object itself; their category is then `object`. Every image needs a mask:
its own alpha, a `mask_path`, or a file beside it.

Two passes: the first reads every mask and finds the box of the object's visual hull, which becomes the unit box; the
second turns each camera towards its centre and takes the picture that the turned camera would have taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.faults import FOREGROUND, mask_fault
from drwr_dist.data.sample import ObjectSample
from drwr_dist.data.writer import EncodedSample
from drwr_dist.errors import DataError, UsageError
from drwr_dist.image_files import border, is_turned
from drwr_dist.pool import run_ordered
from drwr_dist.sources.colmap import colmap_folder, read_colmap
from drwr_dist.sources.finishing import (
    ViewSettings,
    choose_splits,
    choose_views,
    finish_or_skip,
    in_order,
    wanted_categories,
)
from drwr_dist.sources.geometry import Similarity
from drwr_dist.sources.hull import Hull, Silhouette, explained, silhouette, visual_hull
from drwr_dist.sources.mesh_folders import object_id
from drwr_dist.sources.meshes import Progress, Remark, Skipped
from drwr_dist.sources.pictures import read_mask, read_picture
from drwr_dist.sources.posed_view import PosedView, check_masks
from drwr_dist.sources.reframe import to_unit_box, turn_to_centre, warp
from drwr_dist.sources.transforms import OPENGL_TO_OPENCV, read_transforms, transform_files

_PICTURES = (".png", ".jpg", ".jpeg", ".webp")
UPRIGHT = 0.5  # length of the mean of the pictures' up directions from which it says something
EXPLAINED = 0.8  # of every silhouette must be covered by the hull, or a camera is wrong
NO_CATEGORY = "object"  # of objects that lie in no category's folder
_NO_MASK = (
    "no mask: an object needs its silhouettes. Give the images an alpha channel that is 0 on the background "
    "(background removers write such PNGs, `rembg p images cutouts` for instance), or put masks, white on the object, "
    "into masks/<image name>.png, or name them by mask_path"
)


@dataclass(frozen=True)
class PosedObject:
    """One object to import."""

    key: str
    root: Path  # no path leads out of it
    folder: Path
    settings: ViewSettings
    survey: Survey | None = None
    split: str = ""


@dataclass(frozen=True)
class Survey:
    """What the first pass found out about an object."""

    usable: tuple[int, ...]  # numbers of the views that show the whole object
    low: tuple[float, ...]  # corners of the box, in the source's frame
    high: tuple[float, ...]
    up: tuple[float, ...]  # mean direction in the source's frame of what is up in the pictures, not of length 1
    skipped: tuple[Skipped, ...] = ()  # views that can't be used
    turned: int = 0  # images with an orientation tag


def import_posed(
    folder: str, settings: ViewSettings, progress: Progress, done: frozenset[str] = frozenset()
) -> Iterator[EncodedSample | Skipped | Remark]:
    """Convert the objects of a folder; yields samples of train, then val, then test, and what was skipped.

    What is in `done` is left out.

    Raises:
        UsageError: no such folder, no object in it, or a category isn't there.
        DataError: an object or a view can't be used and `skip_bad` is false.
    """
    objects = list_objects(Path(folder), settings)
    usable: dict[str, PosedObject] = {}
    for item, found in zip(objects, run_ordered(survey, objects, settings.workers), strict=True):
        progress("finding the objects", len(objects))
        if isinstance(found, Skipped):
            yield found
            continue
        yield from found.skipped
        usable[item.key] = replace(item, survey=found)
    if usable and (remark := up_remark([each.survey for each in usable.values() if each.survey], settings.up)):
        yield remark
    if remark := tag_remark([each.survey for each in usable.values() if each.survey]):
        yield remark
    splits = choose_splits(list(usable), settings)
    jobs = [replace(usable[key], split=splits[key]) for key in in_order(splits, settings.seed)]
    jobs = [job for job in jobs if job.key not in done]
    for result in run_ordered(convert_object, jobs, settings.workers):
        progress("converting", len(jobs))
        yield result


def list_objects(root: Path, settings: ViewSettings) -> list[PosedObject]:
    """Find the objects of a folder: in <category>/<object>/, in <object>/, or the folder itself.

    Raises:
        UsageError: there are none.
        DataError: two get the same key.
    """
    if not root.is_dir():
        raise UsageError(f"input={root}: no such folder")
    found: dict[str, Path] = {}
    for category, folder in _object_folders(root):
        key = f"{object_id(category)}/{object_id(folder.resolve().name)}"
        if key in found:
            raise DataError(f"{folder} and {found[key]} both become {key}; rename one of them")
        found[key] = folder
    if not any(map(_is_object, found.values())):
        raise UsageError(
            f"input={root}: no object; expected {root}/<category>/<object>/ with transforms.json or cameras.txt and "
            "images.txt in it"
        )
    names = wanted_categories(
        [key.split("/")[0] for key in found], [object_id(name) for name in settings.categories], f"input={root}"
    )
    return [
        PosedObject(key, root, folder, settings) for key, folder in sorted(found.items()) if key.split("/")[0] in names
    ]


def _object_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (category, folder) of the objects, and of folders with photographs beside them that lack cameras."""
    if _is_object(root):
        yield NO_CATEGORY, root
        return
    for folder in _folders(root):
        if _is_object(folder):
            yield NO_CATEGORY, folder
            continue
        inner = _folders(folder)
        if any(map(_is_object, inner)):
            yield from ((folder.name, each) for each in inner if _is_object(each) or _has_pictures(each))
        elif _has_pictures(folder):
            yield NO_CATEGORY, folder


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _is_object(folder: Path) -> bool:
    return bool(transform_files(folder)) or colmap_folder(folder) is not None


def _has_pictures(folder: Path) -> bool:
    images = folder / "images"
    return any(path.suffix.lower() in _PICTURES for path in (images if images.is_dir() else folder).iterdir())


def read_views(item: PosedObject) -> list[PosedView]:
    """Read the cameras of an object; `transforms.json` wins over a COLMAP model."""
    if transform_files(item.folder):
        views = read_transforms(item.root, item.folder, item.settings.axes)
    else:
        model = colmap_folder(item.folder)
        if model is None:
            raise DataError(f"{item.folder}: no cameras: neither transforms.json nor a COLMAP text model is in it")
        views = read_colmap(item.root, item.folder, model)
    check_masks(views)
    return views


def survey(item: PosedObject) -> Survey | Skipped:
    """Read the masks of an object and find its box."""
    try:
        return _survey(item)
    except DataError as error:
        if not item.settings.skip_bad:
            raise
        return Skipped(item.key, str(error))


def _survey(item: PosedObject) -> Survey:
    usable: list[int] = []
    silhouettes: list[Silhouette] = []
    skipped: list[Skipped] = []
    views = read_views(item)
    for number, view in enumerate(views):
        alpha = None if view.fault else read_alpha(view)
        if reason := view.fault if alpha is None else _view_fault(view.image, alpha):
            if not item.settings.skip_bad:
                raise DataError(f"{reason}; remove the view, or skip_bad=true leaves such views out")
            skipped.append(Skipped(item.key, f"{reason}; this view alone is left out"))
        if alpha is None or reason:
            continue
        try:
            silhouettes.append(silhouette(alpha, view.lens_of(*alpha.shape[::-1]), view.world_to_camera))
        except DataError as error:
            raise DataError(f"{view.image}: {error}{_of_tag(view.image)}") from error
        usable.append(number)
    if not silhouettes:
        raise DataError(f"{item.folder}: no view shows the whole object")
    try:
        hull = _hull(silhouettes, item.folder, [views[number].image for number in usable])
    except DataError as error:
        raise DataError(f"{error}{_other_axes(silhouettes, item.settings.axes)}") from error
    up = np.mean([-view.world_to_camera[1, :3] for view in silhouettes], axis=0)
    return Survey(
        usable=tuple(usable),
        low=tuple(hull.low.tolist()),
        high=tuple(hull.high.tolist()),
        up=tuple(up.tolist()),
        skipped=tuple(skipped),
        turned=sum(is_turned(views[number].image) for number in usable),
    )


def _hull(silhouettes: list[Silhouette], folder: Path, images: list[Path]) -> Hull:
    """Return the visual hull; raises DataError where silhouettes and cameras contradict each other."""
    try:
        hull = visual_hull(silhouettes)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    for image, mask in zip(images, silhouettes, strict=True):
        if (share := explained(hull, mask)) < EXPLAINED:
            raise DataError(
                f"{image}: masks and cameras contradict each other: what all the silhouettes leave "
                f"covers only {share:.0%} of this one; check the cameras' order and axes, and the masks"
            )
    return hull


def _other_axes(silhouettes: list[Silhouette], axes: str) -> str:
    """Return a hint where all would be well if the cameras' axes were the other ones that tools write."""
    other = [replace(each, world_to_camera=OPENGL_TO_OPENCV @ each.world_to_camera) for each in silhouettes]
    try:
        _hull(other, Path(), [Path()] * len(other))
    except DataError:
        return ""
    wanted = "opengl" if axes == "opencv" else "opencv"
    return f". With the other axes they agree: axes={wanted}"


def up_remark(surveys: Sequence[Survey], up: str) -> Remark | None:
    """Return a remark where the photographs were plainly taken with another axis up than the import assumes."""
    mean = np.mean([survey.up for survey in surveys], axis=0)
    axis = int(np.abs(mean).argmax())
    found = f"{'+' if mean[axis] > 0 else '-'}{'xyz'[axis]}"
    assumed = float(mean["xyz".index(up[1])]) * (1 if up[0] == "+" else -1)
    if abs(mean[axis]) < UPRIGHT or assumed > UPRIGHT / 2:
        return None
    what = "turns the objects upside down" if found[1] == up[1] else "lays the objects on their side"
    return Remark(
        f"the photographs were taken with {found} up, and up={up} {what}: add up={found}, "
        "unless the cameras were held so"
    )


def tag_remark(surveys: Sequence[Survey]) -> Remark | None:
    """Return a remark where images have an orientation tag, which may or may not be what their cameras go by."""
    if not (turned := sum(survey.turned for survey in surveys)):
        return None
    return Remark(
        f"{turned} images have an orientation tag, which is ignored: cameras and masks must be of the pixels as they "
        "lie in the file. Where `shards inspect` shows pictures turned under their silhouettes, turn the files first "
        "(`mogrify -auto-orient`)"
    )


def _of_tag(image: Path) -> str:
    if not is_turned(image):
        return ""
    return "; its orientation tag is ignored: cameras and masks must be of the pixels as they lie in the file"


def read_alpha(view: PosedView) -> NDArray[np.uint8]:
    """Read the mask of a view, [H, W].

    Raises:
        DataError: there is none; says how to make one.
    """
    if view.mask is not None:
        return read_mask(view.mask)
    _, alpha = read_picture(view.image)
    if alpha is None:
        raise DataError(f"{view.image}: {_NO_MASK}")
    return alpha


def _view_fault(image: Path, alpha: NDArray[np.uint8]) -> str | None:
    if (alpha < FOREGROUND).all():
        return f"{image}: the mask is empty: the object is not in the picture"
    if (border(alpha) >= FOREGROUND).any():
        return f"{image}: the mask reaches the edge of the picture: the object is cut off, or the mask is inverted"
    return None


def convert_object(item: PosedObject) -> EncodedSample | Skipped:
    """Convert one object that has been surveyed."""
    return finish_or_skip(item.key, item.split, item.settings, lambda: make_sample(item))


def make_sample(item: PosedObject) -> ObjectSample:
    """Reframe the views of an object.

    Raises:
        DataError: names the image; too few views, or a camera within the object.
    """
    if item.survey is None:
        raise ValueError(f"{item.key} has not been surveyed")
    settings, usable = item.settings, item.survey.usable
    views = read_views(item)
    chosen = [views[usable[place]] for place in choose_views(item.key, len(usable), settings)]
    similarity = to_unit_box(np.array(item.survey.low), np.array(item.survey.high), settings.up)
    taken = [_reframe(view, similarity, settings) for view in chosen]
    category, name = item.key.split("/", 1)
    return ObjectSample(
        key=item.key,
        images=np.stack([image for image, _, _, _ in taken]),
        masks=np.stack([alpha for _, alpha, _, _ in taken]),
        world_to_camera=np.stack([matrix for _, _, matrix, _ in taken]),
        focal_length=np.array([focal for _, _, _, focal in taken]),
        meta={
            "category": category,
            "object_id": name,
            "source": "posed",
            "source_images": [view.name for view in chosen],
            "licence": "unknown",
            "near_duplicate_group": item.key,
            "similarity": similarity.to_json(),
        },
    )


def _reframe(
    view: PosedView, similarity: Similarity, settings: ViewSettings
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64], float]:
    """Return RGB, alpha, world_to_camera and focal length of the turned camera."""
    image, own = read_picture(view.image)
    alpha = own if view.mask is None else read_mask(view.mask)
    if alpha is None:
        raise DataError(f"{view.image}: {_NO_MASK}")
    if alpha.shape != image.shape[:2]:
        raise DataError(
            f"{view.mask}: {alpha.shape[::-1]} pixels, its image has {image.shape[1::-1]}{_of_tag(view.image)}"
        )
    try:
        lens = view.lens_of(*alpha.shape[::-1])
        matrix, focal, new_to_old = turn_to_centre(view.world_to_camera, similarity, settings.focal_length)
    except DataError as error:
        raise DataError(f"{view.image}: {error}") from error
    small, mask = warp(image, alpha, lens, new_to_old, focal, settings.image_size)
    if reason := mask_fault(mask):
        raise DataError(f"{view.image}: {reason}")
    return small, mask, matrix, focal
