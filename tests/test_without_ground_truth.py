"""Photographs have no ground truth: what can be trained, chosen, measured and shown all the same."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy import SMALL_RUN, call, make_dataset, untrained_run

from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable
from drwr_dist.gallery import TILE, TITLES, write_gallery


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of silhouettes and cameras alone."""
    return make_dataset(tmp_path_factory.mktemp("bare"), "ground_truth_voxel=0", categories={"brick": 6, "slab": 4})


def test_a_metric_that_needs_ground_truth_is_refused_before_the_start(bare: Path, tmp_path: Path):
    done = call(
        "train", f"data={bare}", f"storage={tmp_path}", "name=bare", *SMALL_RUN, "steps=4", "validation.every=2"
    )
    assert done.returncode == 2 and "validation.metric=silhouette_iou" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "bare").exists()


@pytest.fixture(scope="module")
def evaluated(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = untrained_run(tmp_path_factory.mktemp("run") / "run")
    done = call("evaluate", f"run={run}", f"data={bare}", "split=test")
    assert done.returncode == 0, done.stderr
    return run, done.stdout


def test_the_table_shows_what_silhouettes_tell(evaluated: tuple[Path, str]):
    run, printed = evaluated
    block = json.loads((run / "result.json").read_text())["splits"]["test"]
    trained = block["overall"]["silhouette_iou"]
    untrained = block["references"]["untrained"]["overall"]["silhouette_iou"]
    (line,) = [line.split() for line in printed.splitlines() if line.split()[:1] == ["all"]]
    assert line == ["all", str(block["overall"]["objects"]), f"{untrained:.3f}", f"{trained:.3f}"]
    assert "silhouette IoU" in printed and "Chamfer" not in printed
    text = (run / "result.txt").read_text()
    assert "STEP: SCORE" not in text and "silhouette_iou:" in text


def test_the_picture_has_no_empty_columns(bare: Path, toy_dataset: Path, evaluated: tuple[Path, str], tmp_path: Path):
    run, _ = evaluated
    for data, columns in ((bare, 3), (toy_dataset, len(TITLES))):
        table = SampleTable.select(load_index(str(data)), "test")
        objects = {key: {} for key in table.keys if (run / "predictions" / f"{key}.00.ply").exists()}
        if data == toy_dataset:
            call("evaluate", f"run={run}", f"data={data}", f"output={tmp_path}", "references=false", "report=false")
            run, objects = tmp_path, {key: {} for key in table.keys}
        with Image.open(write_gallery(tmp_path, run / "predictions", table, {"objects": objects})) as sheet:
            assert sheet.width == columns * TILE
            pixels = np.asarray(sheet)
        assert all((pixels[30:, column * TILE : (column + 1) * TILE] < 200).any() for column in range(columns))


def test_objects_are_listed_with_their_splits(bare: Path):
    done = call("shards", "inspect", f"data={bare}", "list=true")
    index = load_index(str(bare))
    expected = [f"{split:5} {key}" for split in ("train", "val", "test") for _, _, key in index.select(split)]
    assert sorted(expected, key=lambda line: line[6:]) == done.stdout.splitlines()[-len(expected) :]
