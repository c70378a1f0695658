"""The search space and the other checks of a sweep: mistakes are found before anything starts, and say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from toy import SMALL_RUN, call

from drwr_dist.cli import load_options
from drwr_dist.config import TrainConfig, TuneConfig
from drwr_dist.data.index import load_index
from drwr_dist.errors import UsageError
from drwr_dist.sweep.checks import check_sweep, check_sweep_data, resolve_space
from drwr_dist.sweep.space import apply, grid, parse_space
from drwr_dist.sweep.trial_driver import trial_config
from drwr_dist.sweep.trials import Trial
from drwr_dist.training import resolve_paths
from drwr_dist.validation import validate

AVERAGING = "communication.average_every"
RATE = {"optimizer.learning_rate": {"low": "1e-4", "high": 1e-2, "log": True}}


def config_of(tmp_path: Path, space: dict[str, Any], *arguments: str) -> TuneConfig:
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"sweep": {"space": space, "report": False}}))
    return load_options(TuneConfig, [f"config={file}", *arguments], verb="tune")


MISTAKES = [
    ({}, "empty"),
    ({"loss.thetta": {"low": 1, "high": 2}}, "did you mean loss.theta"),
    ({"loss": {"thetta": {"low": 1, "high": 2}}}, "did you mean loss.theta"),
    ({"loss.theta": 5.0}, "loss.theta: 5.0 is one value"),
    ({"loss.theta": {"low": 1}}, "loss.theta: high is missing"),
    ({"loss.theta": {"low": 1, "high": 2, "hihg": 3}}, "unknown field hihg"),
    ({"loss.theta": {"low": 9, "high": 2}}, "loss.theta: low=9 is above high=2; swap"),
    ({"loss.theta": {"low": 2, "high": 2}}, "low and high are both 2"),
    ({"loss.theta": {"low": "much", "high": 2}}, "low='much': not a finite number"),
    ({"loss.theta": {"low": 1, "high": float("nan")}}, "not a finite number"),
    ({"loss.bias": {"low": -1, "high": 2, "log": True}}, "log: true needs low above 0"),
    ({"loss.unary_weight": {"low": 0, "high": 2, "log": True}}, "log: true needs low above 0"),
    ({"loss.theta": {"low": 1, "high": 2, "log": "yes"}}, "log='yes': true or false"),
    ({"loss.theta": {"low": 1, "high": 2, "step": 3}}, "step=3"),
    ({"loss.theta": {"low": 1, "high": 2, "step": 0.5, "log": True}}, "log and step"),
    ({"loss.theta": {"low": 1, "high": 2, "type": "integer"}}, "choose one of float, int, choice"),
    ({"loss.grid": {"low": 16, "high": 64, "type": "float"}}, "takes whole numbers; write type: int"),
    ({"loss.grid": {"low": 16.5, "high": 64}}, "low=16.5: the key takes whole numbers"),
    ({"loss.semantics": {"low": 1, "high": 2}}, "loss.semantics: not a number; give values"),
    ({"loss.semantics": {"values": ["default", "better"]}}, "choose one of default, released"),
    ({"loss.grid": {"values": []}}, "at least one value"),
    ({"loss.grid": {"values": 32}}, "give a list"),
    ({"loss.grid": {"values": [32, 32]}}, "stands there twice"),
    ({"loss.grid": {"values": [32, "many"]}}, "loss.grid: 'many'"),
    ({"loss.grid": {"values": [32], "low": 3}}, "low goes with"),
    ({"loss.theta": {"low": -1, "high": 2}}, "loss.theta=-1.0: must be above 0"),
    ({"cluster.cpus_per_worker": {"low": 1, "high": 2}}, "can't be varied"),
    ({"name": {"values": ["a", "b"]}}, "can't be varied"),
    ({"data.categories": {"values": [["brick"]]}}, "under sweep.categories"),
]


@pytest.mark.parametrize(("space", "words"), MISTAKES)
def test_a_mistake_in_the_space_is_named_with_its_fix(tmp_path: Path, space: dict[str, Any], words: str):
    with pytest.raises(UsageError) as caught:
        check_sweep(config_of(tmp_path, space))
    assert words in str(caught.value) and "sweep.space" in str(caught.value)
    assert "\n" not in str(caught.value)


SETTINGS = [
    (RATE, ["sweep.search=grid"], "grid over a continuous range; give step"),
    (RATE, ["sweep.search=anneal"], "choose one of grid, random, optuna"),
    (RATE, ["sweep.scheduler=pbt", "sweep.search=grid"], "continuous range"),
    ({"loss.grid": {"values": [16, 32]}}, ["sweep.scheduler=pbt", "sweep.search=grid"], "take sweep.search=random"),
    ({"loss.grid": {"values": [16, 32]}}, ["sweep.candidates=0"], "sweep.candidates=0: must be at least 1"),
    ({"model.points": {"values": [16, 32]}}, ["sweep.scheduler=pbt"], "model.points: can't change while a run"),
    (RATE, ["sweep.scheduler=pbt", "sweep.candidates=2"], "at least 4"),
    (RATE, ["sweep.scheduler=pbt", "sweep.pbt.interval=1000"], "sweep.pbt.interval=1000"),
    (RATE, ["sweep.scheduler=asha", "steps=100"], "sweep.asha.first_rung=100"),
    (RATE, ["sweep.scheduler=asha", "communication.average_every=8"], "sweep.asha.first_rung=100"),
    (RATE, ["sweep.scheduler=asha", "sweep.asha.reduction=1"], "must be at least 2"),
    ({"steps": {"values": [10, 20]}}, ["sweep.scheduler=asha"], "take steps out of the space"),
    (
        {AVERAGING: {"values": [1, 8]}},
        ["sweep.scheduler=asha"],
        f"sweep.asha.first_rung=100: must be a multiple of {AVERAGING}=8",
    ),
    (
        {AVERAGING: {"low": 1, "high": 4}},
        ["sweep.scheduler=halving", "checkpoint.every=12"],
        f"first_rung=100: must be a multiple of {AVERAGING}=3",
    ),
    (
        {AVERAGING: {"low": 1, "high": 2}},
        ["checkpoint.every=9"],
        f"sweep.space: {AVERAGING}: checkpoint.every=9: must be",
    ),
    ({"loss.volumetric_kernel": {"low": 3, "high": 5}}, [], "loss.volumetric_kernel=4: must be odd"),
    ({"steps": {"low": 0, "high": 5}}, ["init=pretrained"], "steps=0: must be at least 1"),
    (RATE, ["data.split=val"], "data.split=val"),
    (RATE, ["sweep.objectives=[quality,seconds]"], "take sweep.search=optuna"),
    (RATE, ["sweep.objectives=[time]", "sweep.search=optuna"], "give [quality] or [quality,seconds]"),
    (RATE, ["sweep.metric=accuracy"], "sweep.metric=accuracy: choose one of chamfer"),
    (RATE, ["optimizer.learning_rate=-1"], "optimizer.learning_rate=-1.0: must be above 0"),
]


@pytest.mark.parametrize(("space", "arguments", "words"), SETTINGS)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, space, arguments: list[str], words: str):
    with pytest.raises(UsageError) as caught:
        check_sweep(config_of(tmp_path, space, *arguments))
    assert words in str(caught.value)


def test_what_passes_the_checks_can_be_a_trial(tmp_path: Path):
    """Trials of other lengths average their weights before they are measured: at their own last step."""
    config = config_of(
        tmp_path, {"steps": {"values": [50, 200]}}, "steps=100", f"{AVERAGING}=8", "checkpoint.every=400"
    )
    check_sweep(config)
    for steps in (50, 100, 200):
        run = trial_config(apply(config, {"steps": steps}), config.sweep, tmp_path, Trial(1, "chair", {}), views=2)
        validate(run)
        assert run.validation.every == run.steps == steps
    config = config_of(tmp_path, {AVERAGING: {"values": [1, 4]}, "loss.grid": {"low": 16, "high": 64, "step": 16}},
                       "sweep.scheduler=asha")  # fmt: skip
    assert set(check_sweep(config)) == {AVERAGING, "loss.grid"}
    config = config_of(tmp_path, {AVERAGING: {"values": [1, 4]}, "loss.grid": {"values": [16, 32]}},
                       "sweep.scheduler=asha", f"{AVERAGING}=8", "sweep.baseline=false")  # fmt: skip
    assert set(check_sweep(config)) == {AVERAGING, "loss.grid"}  # no trial has the 8


@pytest.mark.parametrize("short", [False, True])
def test_first_weights_in_the_space_are_found_from_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short: bool
):
    monkeypatch.chdir(tmp_path)
    values = [None, "runs/a", "/elsewhere/b", "s3://bucket/c", "tf_checkpoint:old/model-9", "pretrained"]
    config = config_of(tmp_path, {"init": values if short else {"values": values}})
    resolve_space(config)
    found = parse_space(config.sweep.space)["init"].values
    assert found == (None, f"{tmp_path}/runs/a", "/elsewhere/b", "s3://bucket/c",
                     f"tf_checkpoint:{tmp_path}/old/model-9", "pretrained")  # fmt: skip
    resolve_space(config)
    assert parse_space(config.sweep.space)["init"].values == found
    for other in ({"init": 5}, {"init": {"low": 1, "high": 2}}, RATE):
        resolve_space(config_of(tmp_path, other))  # what is wrong with them, if anything, the check says


@pytest.mark.parametrize("init", ["runs/own/trials/001-chair", "tf_checkpoint:runs/own/model", "link/trials"])
def test_first_weights_that_would_be_removed_first_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "own" / "trials").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "runs" / "own")

    def check(space: dict[str, Any], *arguments: str) -> None:
        config = config_of(tmp_path, space, "storage=runs", "name=own", *arguments)
        resolve_paths(config)
        resolve_space(config)
        check_sweep(config)

    with pytest.raises(UsageError, match=r"init=\S*: lies in the folder of this sweep, which overwrite=true"):
        check(RATE, f"init={init}", "overwrite=true")
    with pytest.raises(UsageError, match=r"init=\S*: lies in the folder of this sweep, which overwrite=true"):
        check({"init": [None, init]}, "overwrite=true")
    check(RATE, f"init={init}")
    check(RATE, f"init={init.replace('own', 'owner').replace('link', 'linked')}", "overwrite=true")


def test_mistakes_that_need_the_data_are_found_too(tmp_path: Path, toy_dataset: Path):
    index = load_index(str(toy_dataset))

    def message(space: dict[str, Any], *arguments: str) -> str:
        config = config_of(tmp_path, space, f"data={toy_dataset}", *arguments)
        with pytest.raises(UsageError) as caught:
            check_sweep_data(config, check_sweep(config), index)
        return str(caught.value)

    assert "no category chair; it has brick, slab" in message(RATE, "sweep.categories=[brick,chair]")
    assert "brick stands there twice" in message(RATE, "sweep.categories=[brick,brick]")
    assert "loss.grid=48: must divide" in message({"loss.grid": {"values": [32, 48]}})
    assert "loss.grid=48: must divide" in message({"loss.grid": {"low": 16, "high": 64, "step": 16}})
    config = config_of(tmp_path, RATE, f"data={toy_dataset}")
    assert check_sweep_data(config, check_sweep(config), index) == ["brick", "slab"]


def test_the_command_ends_with_one_line_and_code_2(tmp_path: Path, toy_dataset: Path):
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"sweep": {"space": {"loss.theta": {"low": 3, "high": 1}}}}))
    done = call(
        "tune", f"config={tmp_path / 'sweep.yaml'}", f"data={toy_dataset}", f"storage={tmp_path / 'runs'}", *SMALL_RUN
    )
    assert done.returncode == 2 and done.stderr.startswith("error: sweep.space: loss.theta: low=3 is above high=1")
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "runs").exists()


def test_the_shipped_sweep_is_sound():
    config = load_options(TuneConfig, ["config=configs/sweep.yaml"], verb="tune")
    space = check_sweep(config)
    assert check_sweep_data(config, space, load_index(config.data.path)) == ["chair", "table", "sofa"]


def test_help_lists_inherited_and_own_keys_with_their_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        load_options(TuneConfig, ["--help"], verb="tune")
    lines = capsys.readouterr().out.splitlines()
    assert any("loss.theta=5.0" in line and "pixels²" in line for line in lines)
    assert any("sweep.asha.reduction=3" in line and "one trial in this many" in line for line in lines)


def test_draws_stay_in_range_and_follow_the_declared_scale():
    space = parse_space(
        {
            "optimizer.learning_rate": {"low": "1e-4", "high": "1e-2", "log": True},
            "loss": {"theta": {"low": 2, "high": 3, "step": 0.25}, "grid": {"values": [16, 32]}},
            "model.points": {"low": 10, "high": 1000, "log": True, "type": "int"},
        }
    )
    random = np.random.default_rng(0)
    rows = [{key: parameter.draw(random) for key, parameter in space.items()} for _ in range(2000)]
    rates = np.array([row["optimizer.learning_rate"] for row in rows])
    assert rates.min() >= 1e-4 and rates.max() <= 1e-2
    assert abs(np.median(rates) - 1e-3) < 1e-4  # the middle of the logarithm
    points = np.array([row["model.points"] for row in rows])
    assert points.min() >= 10 and points.max() <= 1000 and 80 < np.median(points) < 125
    assert all(type(row["model.points"]) is int for row in rows)
    assert {row["loss.theta"] for row in rows} == {2.0, 2.25, 2.5, 2.75, 3.0}
    assert {row["loss.grid"] for row in rows} == {16, 32}


def test_a_grid_is_every_combination():
    space = parse_space(
        {"loss.theta": {"low": 0.1, "high": 0.3, "step": 0.1}, "loss.repulsion_weight_end": [None, 0.02]}
    )
    rows = grid(space)
    assert len(rows) == 6 and rows[0] == {"loss.theta": 0.1, "loss.repulsion_weight_end": None}
    assert {row["loss.theta"] for row in rows} == {0.1, 0.2, 0.3}
    changed = apply(TrainConfig(), rows[-1])
    assert changed.loss.theta == 0.3 and changed.loss.repulsion_weight_end == 0.02
    assert TrainConfig().loss.theta == 5.0
