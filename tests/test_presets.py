"""The presets in configs/: the released values, and that each of them loads, passes the checks and trains."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import REPOSITORY, drwr, rows

from drwr_dist.cli import load_options
from drwr_dist.config import LossConfig, TrainConfig
from drwr_dist.validation import validate

PRESETS = sorted(path for path in (REPOSITORY / "configs").glob("*.yaml") if path.stem != "sweep")  # that is for tune

# The released values, as the paper's code has them.
RELEASED = {
    "steps": 100_000,
    "global_batch": 1,
    "workers": 1,
    "precision": "float32",
    "data.supervision_views": 4,
    "data.view_order": "fixed",
    "data.binarize": True,
    "data.background": 1.0,
    "data.mirror": False,
    "model.points": 2000,
    "model.channels": 16,
    "model.hidden": 1024,
    "model.decoder_std": 0.025,
    "model.scale_head": False,
    "loss.semantics": "released",
    "pose.mode": "known",
    "loss.grid": 32,
    "optimizer.learning_rate": 1e-4,
    "optimizer.schedule": "constant",
    "optimizer.warmup_steps": 0,
    "optimizer.weight_decay": 0.0,
    "optimizer.gradient_clip": 0.0,
}


def load(path: Path, *arguments: str) -> TrainConfig:
    return load_options(TrainConfig, [f"config={path}", *arguments], verb="train")


def value(config: object, key: str) -> object:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_pass_the_checks(path: Path):
    validate(load(path))


def test_the_paper_preset_has_the_released_values():
    config = load(REPOSITORY / "configs/paper.yaml")
    assert {key: value(config, key) for key in RELEASED} == RELEASED
    assert config.loss == LossConfig.released()
    assert (config.loss.unary_weight, config.loss.repulsion_weight) == (1.0, 3.0)
    assert (config.loss.theta, config.loss.bias, config.loss.ring) == (5.0, 3.5, 5)


@pytest.mark.parametrize("grid", [64, 128])
def test_the_other_grids_are_one_word(grid: int):
    config = load(REPOSITORY / "configs/paper.yaml", f"loss.grid={grid}")
    validate(config)
    assert config.loss.grid == grid


def test_the_paper_preset_trains(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    done = drwr(
        "train", f"config={REPOSITORY / 'configs/paper.yaml'}", f"data={toy_dataset}", f"storage={tmp_path}", "steps=3",
        "log_every=1", "evaluation.references=false", "evaluation.predictions=false", joins_ray,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = rows(tmp_path / "paper")
    assert [row["learning_rate"] for row in history] == [1e-4] * 3
    assert all(row["loss"] == pytest.approx(row["unary"] + 3 * row["repulsion"], rel=1e-5) for row in history)
    assert (tmp_path / "paper" / "result.txt").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "terms"), [("dpc", ("volumetric",)), ("2dpm", ("chamfer_2d",)), ("dpc-poses", ("volumetric", "student"))]
)
def test_the_presets_of_the_peers_train_with_two_workers(
    preset: str, terms: tuple[str, ...], toy_dataset: Path, tmp_path: Path, joins_ray: str
):
    """The scale head takes part in the all-reduce; the last step of an epoch leaves a rank without a sample."""
    done = drwr(
        "train", f"config={REPOSITORY / f'configs/{preset}.yaml'}", f"data={toy_dataset}", f"storage={tmp_path}",
        "steps=6", "log_every=1", "workers=2", "global_batch=3", "model.points=200", "model.hidden=32", "loss.grid=32",
        "evaluation.references=false", "optimizer.learning_rate=1e-3", joins_ray,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    history = rows(tmp_path / preset)
    weights = {"student": 20}
    totals = [sum(weights.get(term, 1) * row[term] for term in terms) for row in history]
    assert [row["loss"] for row in history] == pytest.approx(totals, rel=1e-5)
    assert all("unary" not in row for row in history)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["laptop", "gpu", "cluster"])
def test_our_presets_train(preset: str, toy_dataset: Path, tmp_path: Path, joins_ray: str):
    """With the network made small and a few steps, whatever else they ask for."""
    done = drwr(
        "train", f"config={REPOSITORY / f'configs/{preset}.yaml'}", f"data={toy_dataset}", f"storage={tmp_path}",
        "steps=4", "log_every=1", "workers=2", "global_batch=6", "model.points=100", "model.channels=4",
        "model.hidden=32", "loss.grid=32", "validation.every=2", "checkpoint.every=2",
        joins_ray,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / preset)] == [1, 2, 3, 4]
    assert (tmp_path / preset / "report.html").exists()
