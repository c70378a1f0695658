"""Small samples and datasets for the shard tests, made without rendering: a disc seen by ideal cameras."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drwr_dist.data.index import DatasetIndex, load_index, read_sample, read_shard
from drwr_dist.data.sample import ObjectSample, encode_sample, split_members
from drwr_dist.data.writer import EncodedSample, ShardLimits, write_dataset
from drwr_dist.sources.rendering import look_at_origin

SIDE, VIEWS, RADIUS = 32, 3, 0.4


def make_sample(key: str = "ball/a", *, views: int = VIEWS, points: bool = True, group: str = "") -> ObjectSample:
    """A ball of radius 0.4: its silhouette is the same disc in every view."""
    random = np.random.default_rng(sum(key.encode()))
    cameras = look_at_origin(random.uniform(0, 6.28, views), random.uniform(-0.3, 0.6, views), 2.0)
    centre = (np.arange(SIDE) + 0.5) / SIDE - 0.5
    disc = centre[:, None] ** 2 + centre**2 < (1.875 * RADIUS / np.sqrt(4 - RADIUS**2)) ** 2
    masks = np.repeat(np.where(disc, 255, 0).astype(np.uint8)[None], views, axis=0)
    images = random.integers(0, 256, (views, SIDE, SIDE, 3), dtype=np.uint8) * (masks[..., None] > 0)
    directions = random.normal(size=(200, 3))
    surface = (RADIUS * directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)
    category, name = key.split("/")
    meta = {"category": category, "object_id": name, "near_duplicate_group": group or key}
    return ObjectSample(key, images, masks, cameras, np.full(views, 1.875), surface if points else None, meta)


def encoded(sample: ObjectSample, split: str = "train") -> EncodedSample:
    return EncodedSample(sample.key, split, encode_sample(sample), source="test", licence="CC0-1.0")


def write_samples(
    folder: Path, samples: Sequence[EncodedSample], per_shard: int = 4, **options: object
) -> DatasetIndex:
    settings: dict[str, object] = {"name": "test", "image_size": SIDE, "views": VIEWS, "focal_length": 1.875, **options}
    return write_dataset(folder, samples, limits=ShardLimits(samples=per_shard), **settings)  # type: ignore[arg-type]


def make_balls(folder: Path, **options: object) -> DatasetIndex:
    """Six balls for training in two shards, two for val, three for test."""
    counts = {"train": 6, "val": 2, "test": 3}
    samples = [
        encoded(make_sample(f"ball/{split}{number}"), split)
        for split, count in counts.items()
        for number in range(count)
    ]
    return write_samples(folder, samples, **options)


def assert_reads_like(root: str, folder: Path) -> None:
    """Every shard and sample of a dataset elsewhere must be that of the folder."""
    local, remote = load_index(folder), load_index(root)
    for number, shard in enumerate(local.shards):
        assert b"".join(read_shard(remote, remote.shards[number])) == (folder / shard.url).read_bytes()
        for position, key in enumerate(shard.keys):
            data = read_sample(remote, number, position)
            assert data == read_sample(local, number, position)
            assert split_members(data, key=key)
