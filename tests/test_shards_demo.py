"""The demo shards in the repository are sound, small, lawful, and their cameras fit their silhouettes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from toy import drwr

from drwr_dist.data.index import DatasetIndex, load_index, read_sample
from drwr_dist.data.sample import decode_sample, split_members
from drwr_dist.data.verify import verify_dataset
from drwr_dist.sources.manifest import read_manifest

SHARDS = Path(__file__).parent.parent / "shards"


@pytest.fixture(scope="module")
def demo() -> DatasetIndex:
    return load_index(SHARDS / "demo")


def test_sound(demo: DatasetIndex):
    assert verify_dataset(demo.root) == []


def test_what_it_holds(demo: DatasetIndex):
    assert (demo.views, demo.image_size, demo.focal_length) == (8, 128, 1.875)
    totals = {category: sum(counts.values()) for category, counts in demo.categories.items()}
    assert totals == {"chair": 59, "table": 42, "sofa": 22, "car": 11}
    assert all(counts["val"] >= 1 and counts["test"] >= 2 for counts in demo.categories.values())


def test_small_enough_for_git(demo: DatasetIndex):
    assert max(shard.filesize for shard in demo.shards) <= 2_000_000
    assert sum(path.stat().st_size for path in (SHARDS / "demo").iterdir()) <= 13_000_000


def test_every_object_is_attributed(demo: DatasetIndex):
    assert set(demo.licences) == {"CC0-1.0", "CC-BY-3.0", "CC-BY-3.0-US"}
    manifest = read_manifest(str(SHARDS / "demo" / "manifest.csv"))
    keys = {key for split in ("train", "val", "test") for _, _, key in demo.select(split)}
    assert keys == {f"{category}/{name}" for category, name in manifest}
    text = (SHARDS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for (category, name), row in manifest.items():
        assert row.author and any(
            f"`{category}/{name}`" in line and row.author in line and row.licence in line for line in text.splitlines()
        ), name


@pytest.mark.slow
def test_rebuilt_from_the_package(tmp_path: Path):
    """The README's command gives the committed bytes (on the kind of processor that they were made on)."""
    package = os.environ.get("DRWR_OPEN_SHAPES")
    if not package:
        pytest.skip("set DRWR_OPEN_SHAPES to the path of sweethome3d-furniture_1.8-1_all.deb")
    text = (SHARDS / "README.md").read_text(encoding="utf-8")
    command = re.search(r"python -m drwr_dist.shards (import source=open_shapes.*?)\n```", text, re.DOTALL)
    assert command
    words = command[1].replace("\\\n", " ").split()
    places = {"input": package, "output": str(tmp_path / "demo"), "overwrite": "false"}
    arguments = [f"{word.split('=')[0]}={places.get(word.split('=')[0], word.split('=')[-1])}" for word in words[1:]]
    done = drwr("shards import", *arguments)
    assert done.returncode == 0, done.stderr
    for path in (tmp_path / "demo").iterdir():
        assert path.read_bytes() == (SHARDS / "demo" / path.name).read_bytes(), path.name


def test_ground_truth_projects_onto_the_masks(demo: DatasetIndex):
    """Every view of every object: at least 99.9 % within one pixel of the silhouette, by the package's projection."""
    import cv2
    import numpy as np
    import torch

    from drwr_dist.camera import project

    worst, total, outside = 1.0, 0, 0
    for split in ("train", "val", "test"):
        for number, position, key in demo.select(split):
            members = split_members(read_sample(demo, number, position), key=key)
            sample = decode_sample(members, key=key, shard=demo.shards[number].url, with_points=True)
            assert sample.points is not None, key
            points = torch.from_numpy(sample.points).double().expand(len(sample.masks), -1, -1)
            xy, _ = project(points, torch.from_numpy(sample.world_to_camera), demo.focal_length)
            pixels = (xy * demo.image_size).floor().long().numpy()
            for mask, (columns, rows) in zip(sample.masks, np.moveaxis(pixels, 2, 1), strict=True):
                near = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0
                inside = near[rows, columns]
                worst = min(worst, float(inside.mean()))
                total, outside = total + len(inside), outside + int((~inside).sum())
    assert total > 1_000_000
    assert worst >= 0.999 and outside / total <= 1e-3
