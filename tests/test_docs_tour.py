"""The README's commands, as they stand there, on a small dataset: one short training, and what is done with it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from documents import blocks
from PIL import Image
from toy import REPOSITORY, SMALL_RUN

from drwr_dist.point_cloud import read_ply

README = list(blocks(REPOSITORY / "README.md"))
pytestmark = pytest.mark.slow


def command(*parts: str) -> list[str]:
    """Return the words of the README's one command that has these words."""
    lines = [words for block in README if block.language == "sh" for words in block.commands()]
    found = [words for words in lines if set(parts) <= set(words)]
    assert len(found) == 1, (parts, found)
    return found[0]


class Tour:
    """A folder as it looks to a reader who has followed the README so far."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data
        for name in ("configs", "shards"):
            (folder / name).symlink_to(REPOSITORY / name)
        (folder / "photos").mkdir()
        (folder / "masks").mkdir()
        picture = np.full((90, 120, 3), 255, np.uint8)
        picture[20:70, 30:90] = (150, 60, 60)
        mask = np.zeros((90, 120), np.uint8)
        mask[20:70, 30:90] = 255
        for name in ("photo.png", "photo.jpg", "photos/one.jpg", "photos/two.jpg"):
            Image.fromarray(picture).save(folder / name)
        for name in ("mask.png", "masks/one.png", "masks/two.png"):
            Image.fromarray(mask).save(folder / name)

    def run(self, words: list[str], *more: str) -> str:
        places = {"data=DATA": f"data={self.data}", "workers=8": "workers=2"}  # two cores are enough for a test
        arguments = [places.get(word, word) for word in words[1:]]
        done = subprocess.run(
            [sys.executable, *arguments, *more], cwd=self.folder, capture_output=True, text=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def tour(tmp_path_factory: pytest.TempPathFactory, toy_dataset: Path) -> Iterator[Tour]:
    """After `train`: four steps of the demo's configuration, shrunk."""
    found = Tour(tmp_path_factory.mktemp("tour"), toy_dataset)
    found.run(command("drwr_dist.train", "name=mine"), "steps=4", *SMALL_RUN)
    yield found


def test_train_leaves_what_the_readme_lists(tour: Tour):
    run = tour.folder / "runs/mine"
    for name in ("config.yaml", "metrics.jsonl", "tensorboard", "result.json", "result.txt", "report.html"):
        assert (run / name).exists(), name
    assert (run / "gallery.png").exists() and list((run / "predictions").glob("*/*.ply"))


def test_evaluate_alone_and_side_by_side(tour: Tour):
    for which in ("split=test", "shards=test-00000*.tar"):
        assert "chamfer" in tour.run(command("drwr_dist.evaluate", "run=runs/mine", which)).lower()
    shutil.copytree(tour.folder / "runs/mine", tour.folder / "runs/other", dirs_exist_ok=True)
    assert "other" in tour.run(command("drwr_dist.evaluate", "runs=runs/mine,runs/other"))


def test_predict_one_and_many(tour: Tour):
    tour.run(command("drwr_dist.predict", "images=photo.png"))
    assert read_ply(tour.folder / "clouds/photo.ply").shape == (64, 3)
    tour.run(command("drwr_dist.predict", "format=glb"), "output=many")
    assert sorted(path.name for path in (tour.folder / "many").glob("*.glb")) == ["one.glb", "two.glb"]


def test_export(tour: Tour):
    tour.run(command("drwr_dist.export"))
    assert list(tour.folder.rglob("*.onnx"))


def test_the_lines_of_python(tour: Tour, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tour.folder)
    (code,) = (block.text for block in README if block.language == "python")
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    points = names["points"]
    assert isinstance(points, np.ndarray) and points.shape == (64, 3) and points.dtype == np.float32
    assert bool(torch.from_numpy(points).isfinite().all())
