"""What the sources of ready-made views share: their settings, the choice of views, and the last checks of a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from drwr_dist.config import SPLITS
from drwr_dist.data.sample import ObjectSample, encode_sample
from drwr_dist.data.verify import camera_findings
from drwr_dist.data.writer import EncodedSample
from drwr_dist.errors import DataError, UsageError
from drwr_dist.pool import Crew
from drwr_dist.sources.meshes import Skipped
from drwr_dist.sources.splits import assign_splits, read_splits, shuffled


@dataclass(frozen=True)
class ViewSettings:
    """How objects that come with their own views become samples."""

    image_size: int = 128  # pixels a side
    views: int | None = None  # per object; None: all that it has
    focal_length: float = 1.875  # frame widths
    camera: str = "position"  # dpc, tfrecords: position (the released quaternion path) | extrinsic (the matrix path)
    up: str = "+z"  # posed: the source's axis that points up
    axes: str = "opengl"  # posed: of the cameras in transforms.json: opengl | opencv
    categories: tuple[str, ...] = ()  # only these; none: all
    splits: str | None = None  # JSON or CSV key → split, or a folder with lists; None: the source's own
    max_bytes: int = 256 * 2**20  # tfrecords: of each record
    depth: bool = False  # dpc: keep its depth images
    compression: str = "small"  # of the PNGs
    seed: int = 0
    workers: int | Crew = 1
    skip_bad: bool = False


def choose_views(key: str, count: int, settings: ViewSettings) -> list[int]:
    """Choose an object's views evenly over their order, from a start that depends on the seed and the object alone.

    Args:
        key: of the object.
        count: of the views it has.
        settings: how many to take; None: all.

    Returns:
        Growing numbers below `count`.

    Raises:
        DataError: the object has fewer than are asked for.
    """
    wanted = count if settings.views is None else settings.views
    if count < wanted:
        raise DataError(f"{key}: {count} views, {wanted} asked for; without views=… each object keeps what it has")
    digest = hashlib.sha256(f"{settings.seed}\0views\0{key}".encode()).digest()
    start = np.random.default_rng(list(digest)).random()
    return [int((place + start) * count / wanted) for place in range(wanted)]


def wanted_categories(found: Sequence[str], asked: Sequence[str], where: str) -> list[str]:
    """Return the categories to import, in order.

    Raises:
        UsageError: one that is asked for isn't there.
    """
    if missing := sorted(set(asked) - set(found)):
        raise UsageError(f"{where}: no category {missing[0]!r}; there are {', '.join(sorted(found))}")
    return sorted(set(asked) or set(found))


def choose_splits(keys: Sequence[str], settings: ViewSettings) -> dict[str, str]:
    """Return key → split: from the file `splits`, else 70/10/20 drawn from the seed; every object is its own group."""
    groups = {key: key for key in keys}
    return read_splits(settings.splits, groups) if settings.splits else assign_splits(groups, settings.seed)


def in_order(splits: Mapping[str, str], seed: int) -> list[str]:
    """Return the keys in the order of the shards: train, val, test, each in a seeded order that mixes categories."""
    return [key for split in SPLITS for key in shuffled([key for key in splits if splits[key] == split], seed)]


def finish(sample: ObjectSample, split: str, compression: str = "small") -> EncodedSample:
    """Encode, and check that each view's camera and mask belong together.

    Raises:
        DataError: they don't, or the sample breaks a rule of `encode_sample`; names the object.
    """
    members = encode_sample(sample, compression)
    for reason in camera_findings(sample):
        raise DataError(f"{sample.key}: {reason}")
    return EncodedSample(sample.key, split, members, str(sample.meta["source"]), str(sample.meta["licence"]))


def finish_or_skip(
    key: str, split: str, settings: ViewSettings, make: Callable[[], ObjectSample]
) -> EncodedSample | Skipped:
    """Make and finish a sample; what can't be used is skipped with `skip_bad`, else raised."""
    try:
        return finish(make(), split, settings.compression)
    except DataError as error:
        if not settings.skip_bad:
            raise
        return Skipped(key, str(error))
