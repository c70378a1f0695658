"""Shards from the TFRecord files of DPC and DRWR, without TensorFlow.

    DIR/<synset>_<split>.tfrecords        gzip or not; also DIR/tf_records/…, or a single file
    DIR/gt/downsampled/<synset>/<model>.mat     ground truth, optional (the records hold none)

Each record is an object: `name`, `image` [V, H, H, 3] on white, `mask` [V, H, H, 1] (or only the smooth silhouettes
`mask_sdf` / `mask_sdfs`), `cam_pos` [V, 3], `extrinsic` [V, 4, 4]. V and H follow from their lengths. `depth`, `vox`,
`inpoints` and the smooth silhouettes are left behind.

Two passes: the first follows the frames of every file and checks every byte; the second converts the records in the
order of the files, which are merged at random so that categories mix.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drwr_dist.config import SPLITS
from drwr_dist.data.png import MAX_SIDE
from drwr_dist.data.sample import ObjectSample
from drwr_dist.data.writer import EncodedSample
from drwr_dist.errors import DataError, UsageError
from drwr_dist.pool import run_ordered
from drwr_dist.sources.dpc import convert_cameras, ground_truth_file, read_points, released_meta
from drwr_dist.sources.finishing import (
    ViewSettings,
    choose_splits,
    choose_views,
    finish,
    wanted_categories,
)
from drwr_dist.sources.mesh_folders import object_id
from drwr_dist.sources.meshes import Progress, Skipped
from drwr_dist.sources.pictures import resample, unpremultiply
from drwr_dist.sources.released_splits import MODEL_ID
from drwr_dist.sources.tfrecord_file import BrokenFrameError, check_record, parse_example, read_records

INSIDE = 0.95  # a smooth silhouette is at least so high inside the object, and below 0.87 outside
_NAME = re.compile(r"(?P<category>.+?)(?:_(?P<split>train|val|test)(?:_.*)?)?\.(?:tfrecords?|tf_records)(?:\.gz)?")


@dataclass(frozen=True)
class RecordFile:
    """One file of records."""

    path: Path
    category: str
    split: str | None  # as its name says
    settings: ViewSettings


@dataclass(frozen=True)
class Record:
    """One record on its way to be converted."""

    where: str  # file and number, for messages
    key: str
    split: str
    data: bytes
    stored: bytes  # its checksum
    root: Path  # where ground truth may lie
    settings: ViewSettings


@dataclass(frozen=True)
class Scanned:
    """What the first pass knows about a file: the key of each record, or why it is no use."""

    entries: tuple[str | DataError, ...]
    end: str = ""  # why the file could not be read to its end


def import_tfrecords(
    folder: str, settings: ViewSettings, progress: Progress, done: frozenset[str] = frozenset()
) -> Iterator[EncodedSample | Skipped]:
    """Convert the records of a folder; yields samples of train, then val, then test, and what was skipped.

    What is in `done` is left out.

    Raises:
        UsageError: no such files there, or a category isn't among them.
        DataError: a record or a file is damaged and `skip_bad` is false.
    """
    files = list_files(Path(folder), settings)
    scans: list[Scanned] = []
    for scan in run_ordered(scan_file, files, settings.workers):
        progress("checking files", len(files))
        scans.append(scan)
    yield from _faults(files, scans)
    records = _records(files, scans)
    splits = _splits(files, records, settings)
    jobs = _in_order(files, records, splits, _root(Path(folder)))
    todo = (job for job in jobs if job.key not in done)
    for result in run_ordered(convert_record, todo, settings.workers):
        progress("converting", len(records) - len(done))
        yield result


def list_files(folder: Path, settings: ViewSettings) -> list[RecordFile]:
    """Find the record files of a folder, or take the one file.

    Raises:
        UsageError: there are none, or a category isn't among them.
    """
    places = [folder, folder / "tf_records", folder / "tfrecords"]
    paths = [folder] if folder.is_file() else sorted(p for place in places if place.is_dir() for p in place.iterdir())
    found = [(path, match) for path in paths if path.is_file() and (match := _NAME.fullmatch(path.name))]
    if not found:
        raise UsageError(f"input={folder}: no <synset>_<split>.tfrecords in it")
    files = [RecordFile(path, object_id(match["category"]), match["split"], settings) for path, match in found]
    names = wanted_categories([file.category for file in files], settings.categories, f"input={folder}")
    return [file for file in files if file.category in names]


def _root(folder: Path) -> Path:
    """Return the folder that may hold gt/: the input, or the folder that the record files' folder lies in."""
    inside = folder.parent if folder.is_file() else folder
    return inside.parent if inside.name in ("tf_records", "tfrecords") else inside


def scan_file(file: RecordFile) -> Scanned:
    """Follow the frames of a file, check every record and read its name."""
    entries: list[str | DataError] = []
    try:
        for number, (record, stored) in enumerate(read_records(file.path, file.settings.max_bytes)):
            where = f"{file.path}: record {number}"
            try:
                check_record(record, stored)
                entries.append(f"{file.category}/{object_id(_model(parse_example(record)))}")
            except DataError as error:
                if not file.settings.skip_bad:
                    raise DataError(f"{where}: {error}") from error
                entries.append(DataError(f"{where}: {error}"))
    except BrokenFrameError as error:
        if not file.settings.skip_bad:
            raise
        return Scanned(tuple(entries), f"{error}; the rest of the file is lost")
    return Scanned(tuple(entries))


def _faults(files: list[RecordFile], scans: list[Scanned]) -> Iterator[Skipped]:
    for file, scan in zip(files, scans, strict=True):
        reasons = [str(entry) for entry in scan.entries if isinstance(entry, DataError)]
        reasons += [scan.end] if scan.end else []
        yield from (Skipped(file.path.name, reason) for reason in reasons)


def _records(files: list[RecordFile], scans: list[Scanned]) -> dict[str, tuple[int, int]]:
    """Return key → (number of the file, of the record in it) of all usable records."""
    found: dict[str, tuple[int, int]] = {}
    for number, (file, scan) in enumerate(zip(files, scans, strict=True)):
        for place, key in enumerate(scan.entries):
            if isinstance(key, DataError):
                continue
            if key in found:
                other = files[found[key][0]].path
                raise DataError(f"{file.path}: record {place}: {key} is in {other} too; an object belongs to one split")
            found[key] = number, place
    if not found:
        raise DataError(f"{files[0].path.parent}: no record can be used")
    return found


def _splits(files: list[RecordFile], records: Mapping[str, tuple[int, int]], settings: ViewSettings) -> dict[str, str]:
    """Return key → split: as `splits` says, else as the files' names say, else drawn from the seed."""
    if settings.splits is not None:
        return choose_splits(list(records), settings)
    named = {key: split for key, (number, _) in records.items() if (split := files[number].split) is not None}
    return named | choose_splits([key for key in records if key not in named], settings)


def _in_order(
    files: list[RecordFile],
    records: Mapping[str, tuple[int, int]],
    splits: Mapping[str, str],
    root: Path,
) -> Iterator[Record]:
    """Read the records again: train, val, test; each file from its start to its end, files merged at random."""
    by_place = {place: key for key, place in records.items()}
    for which, split in enumerate(SPLITS):
        turns = [number for (number, _), key in sorted(by_place.items()) if splits[key] == split]
        np.random.default_rng([files[0].settings.seed, which]).shuffle(turns)
        streams = {number: _of_split(files[number], number, by_place, splits, split) for number in sorted(set(turns))}
        for number in turns:
            yield replace(next(streams[number]), root=root)


def _of_split(
    file: RecordFile, number: int, by_place: Mapping[tuple[int, int], str], splits: Mapping[str, str], split: str
) -> Iterator[Record]:
    for place, (data, stored) in enumerate(read_records(file.path, file.settings.max_bytes)):
        key = by_place.get((number, place))
        if key is not None and splits[key] == split:
            where = f"{file.path}: record {place}"
            yield Record(where, key, split, data, stored, Path(), file.settings)


def convert_record(record: Record) -> EncodedSample | Skipped:
    """Convert one record."""
    try:
        check_record(record.data, record.stored)
        return finish(make_sample(record), record.split, record.settings.compression)
    except DataError as error:
        if not record.settings.skip_bad:
            raise DataError(f"{record.where}: {error}") from error
        return Skipped(record.key, f"{record.where}: {error}")


def make_sample(record: Record) -> ObjectSample:
    """Turn the features of a record into a sample.

    Raises:
        DataError: a feature is missing, of the wrong kind or length; too few views.
    """
    settings, features = record.settings, parse_example(record.data)
    positions = _cameras(features, settings.camera)
    chosen = choose_views(record.key, len(positions), settings)
    masks = _masks(features, len(positions))
    side = masks.shape[1]
    images = _floats(features, "image", (len(positions), side, side, 3))
    views = [resample(*_uncomposite(images[view], masks[view]), settings.image_size) for view in chosen]
    try:
        cameras = convert_cameras(positions[chosen], settings.camera)
    except ValueError as error:
        raise DataError(str(error)) from error
    category = record.key.split("/", 1)[0]
    ground_truth = ground_truth_file(record.root, category, _model(features))
    return ObjectSample(
        key=record.key,
        images=np.stack([image for image, _ in views]),
        masks=np.stack([alpha for _, alpha in views]),
        world_to_camera=cameras,
        focal_length=np.full(len(chosen), settings.focal_length),
        points=None if ground_truth is None else read_points(ground_truth, settings.camera),
        meta=released_meta(record.key, "tfrecords", settings.camera),
    )


def _model(features: Mapping[str, Any]) -> str:
    values = features.get("name")
    if not isinstance(values, list) or len(values) != 1:
        raise DataError(f"feature 'name' must be one string; the record has {_listed(features)}")
    name = values[0].decode("utf-8", "replace")
    if not MODEL_ID.fullmatch(name):
        raise DataError(f"feature 'name' is {name[:80]!r}, not a model id")
    return str(name)


def _cameras(features: Mapping[str, Any], camera: str) -> NDArray[np.float64]:
    """Return camera positions [V, 3] or extrinsics [V, 4, 4]."""
    if camera == "position":
        return _floats(features, "cam_pos", (-1, 3)).astype(np.float64)
    return _floats(features, "extrinsic", (-1, 4, 4)).astype(np.float64)


def _masks(features: Mapping[str, Any], views: int) -> NDArray[np.float32]:
    """Return alpha [V, H, H] in 0 … 1: the masks, or the inside of the smooth silhouettes."""
    name = next((name for name in ("mask", "mask_sdf", "mask_sdfs") if name in features), "mask")
    values = _floats(features, name, (-1,))
    side = math.isqrt(len(values) // views)
    if side * side * views != len(values) or not 0 < side <= MAX_SIDE:
        raise DataError(f"feature {name!r} has {len(values)} values: not {views} square images")
    square = values.reshape(views, side, side)
    return square if name == "mask" else (square >= INSIDE).astype(np.float32)


def _floats(features: Mapping[str, Any], name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a feature as an array of a shape, whose first entry may be -1 for any number but zero."""
    values = features.get(name)
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        raise DataError(f"feature {name!r} must be a list of floats; the record has {_listed(features)}")
    rest = math.prod(shape[1:])
    if not len(values) or (len(values) % rest if shape[0] == -1 else len(values) != shape[0] * rest):
        raise DataError(f"feature {name!r} has {len(values)} values, which is not {list(shape)}")
    if not np.isfinite(values).all():
        raise DataError(f"feature {name!r} is not finite")
    return values.reshape(shape)


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(sorted(features)[:20]) or "no features"


def _uncomposite(image: NDArray[np.float32], alpha: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Take an image [H, H, 3] in 0 … 1 off the white that the record's writer laid it on."""
    opacity = np.clip(alpha, 0.0, 1.0)
    return unpremultiply(255 * (image - (1 - opacity[..., None])), opacity)
