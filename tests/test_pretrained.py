"""The network that comes with the package, and the small run's folder that it is."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import REPOSITORY, SMALL_RUN, call, drwr, rows, untrained_run

import drwr_dist
from drwr_dist import checkpoint
from drwr_dist.cli import load_options
from drwr_dist.config import TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable
from drwr_dist.engine.initial_weights import initial_weights
from drwr_dist.point_cloud import read_ply
from drwr_dist.pretrained import FOLDER, located
from drwr_dist.run import load_run
from drwr_dist.training import resolve_paths


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and what `export format=run` makes of it."""
    folder = tmp_path_factory.mktemp("small")
    run = untrained_run(folder)
    done = call("export", f"run={run}", "format=run", f"output={folder / 'handed_on'}")
    assert done.returncode == 0, done.stderr
    return run, folder / "handed_on"


def test_a_run_that_is_handed_on_predicts_the_same_to_half_precision(small: tuple[Path, Path]) -> None:
    whole, handed_on = (load_run(run) for run in small)
    images = torch.rand(4, 3, whole.image_size, whole.image_size)
    with torch.no_grad():
        expected, found = whole.model(images), handed_on.model(images)
    assert (expected - found).abs().max() < 2e-3 < (expected.max() - expected.min())
    assert handed_on.step == whole.step and found.dtype == torch.float32
    text = (small[1] / "config.yaml").read_text()
    assert str(small[0].parent) not in text, "it names no folder of this machine"
    assert not {path.suffix for path in small[1].rglob("*") if path.is_file()} - {".yaml", ".pt", ".json"}


def test_its_weights_are_those_that_training_starts_from(small: tuple[Path, Path]) -> None:
    run = load_run(small[1])
    found = initial_weights(str(small[1]), run.config, run.image_size)
    assert all(torch.equal(found[name], weight) for name, weight in run.model.state_dict().items())


@pytest.mark.slow
def test_training_starts_from_it(small: tuple[Path, Path], toy_dataset: Path, tmp_path: Path, joins_ray: str) -> None:
    model = load_run(small[1]).config.model
    network = [f"model.{name}={getattr(model, name)}" for name in ("points", "channels", "hidden", "decoder_std")]
    done = drwr(
        "train", f"data={toy_dataset}", f"storage={tmp_path}", "name=next", f"init={small[1]}", *SMALL_RUN, *network,
        "steps=2", "evaluation.split=", joins_ray,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "next")] == [1, 2]


def test_mistakes_are_told(small: tuple[Path, Path]) -> None:
    for arguments, message in (
        (["format=run"], "output: format=run needs a folder"),
        (["format=run", f"output={small[0]}"], "that is the run itself"),
    ):
        done = call("export", f"run={small[0]}", *arguments)
        assert done.returncode == 2 and message in done.stderr


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("pretrained") == str(FOLDER)
    (tmp_path / "pretrained").mkdir()
    assert located("pretrained") == str(tmp_path / "pretrained")
    assert located("s3://bucket/run") == "s3://bucket/run"


def test_a_training_can_start_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    preset = [f"config={REPOSITORY / 'configs/laptop.yaml'}", "init=pretrained"]
    config = resolve_paths(load_options(TrainConfig, preset, verb="train"))
    found = initial_weights(str(config.init), config, load_run(FOLDER).image_size)
    assert all(torch.equal(found[name], value.half()) for name, value in load_run(FOLDER).model.state_dict().items())


def test_the_package_predicts_at_once(tmp_path: Path) -> None:
    """No run, no data: one image of a chair, not among those that it has seen, becomes a chair."""
    chair = SampleTable.select(load_index(str(REPOSITORY / "shards/demo")), "test", ["chair"]).read(0, with_points=True)
    Image.fromarray(np.dstack([chair.images[0], chair.masks[0]])).save(tmp_path / "chair.png")
    done = drwr("predict", f"images={tmp_path / 'chair.png'}", f"output={tmp_path}")
    assert done.returncode == 0, done.stderr
    points = read_ply(tmp_path / "chair.ply")
    assert np.array_equal(points, drwr_dist.load("pretrained")(tmp_path / "chair.png"))
    assert points.shape == (load_run(FOLDER).config.model.points, 3) and np.abs(points).max() < 0.5
    assert chair.points is not None
    truth, guess = torch.from_numpy(chair.points), torch.from_numpy(points)
    distances = torch.cdist(truth, guess)
    assert 100 * float(distances.min(0).values.mean() + distances.min(1).values.mean()) < 10


def test_its_results_are_not_written_into_the_package(tmp_path: Path) -> None:
    done = call("evaluate", "run=pretrained", f"data={REPOSITORY / 'shards/demo'}")
    assert done.returncode == 2 and "output=FOLDER" in done.stderr


def test_it_can_be_compared_with_ones_own(tmp_path: Path) -> None:
    own = untrained_run(tmp_path / "mine", image_size=128)
    selection = [f"data={REPOSITORY / 'shards/demo'}", "split=test", "categories=[car]"]
    before = sorted(FOLDER.rglob("*"))
    done = call("evaluate", f"runs={own},pretrained", *selection, f"output={tmp_path / 'comparison'}")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert table["runs"] == ["mine", "pretrained"]
    means = {run: row["mean"] for run, row in table["groups"]["all"]["metrics"]["chamfer"].items()}
    assert means["pretrained"] < 0.8 * means["mine"]
    assert sorted(FOLDER.rglob("*")) == before


def test_it_is_small_and_names_its_teachers() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 10e6
    assert len(checkpoint.names(FOLDER)) == 1
    categories = set(load_run(FOLDER).config.data.categories) or {"cabinet", "chair", "lamp", "sofa", "table"}
    text = (FOLDER / "LICENCES.md").read_text(encoding="utf-8")
    with (REPOSITORY / "shards/open_shapes/manifest.csv").open(encoding="utf-8") as file:
        shapes = [row for row in csv.DictReader(file) if row["category"] in categories]
    free = [row for row in shapes if row["license"].startswith(("CC0", "CC-BY"))]
    for row in free:
        assert f"{row['category']}/{row['name']} | {row['license']} | {row['author']}" in text
    assert len(free) == text.count("| CC")
