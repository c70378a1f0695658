"""Whole sweeps: real Ray Tune, real Ray Train runs, real kills. Each takes a minute or more, most of it Ray's."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import REPOSITORY, SMALL_RUN, command, drwr, make_dataset

from drwr_dist.sweep import trials
from drwr_dist.sweep.trials import FAILED, FINISHED, PENDING, STOPPED, Trial

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

RATE = {"optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose two categories have objects in every split."""
    return make_dataset(tmp_path_factory.mktemp("boxes"), categories={"brick": 16, "slab": 16})


def arguments(data: Path, storage: Path, name: str, space: dict[str, Any], *more: str) -> list[str]:
    file = storage / f"{name}.yaml"
    storage.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump({"cluster": {"cpus_per_worker": 0.5}, "sweep": {"space": space}}))
    return [f"config={file}", f"data={data}", f"storage={storage}", f"name={name}", *SMALL_RUN, *more]


def tune(*line: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
    return drwr("tune", *line, timeout=timeout)


def start(*line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("tune", *line), cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def entries(sweep: Path) -> dict[str, Trial]:
    return {trial.id: trial for trial in trials.load_all(sweep)}


def wait_until(process: subprocess.Popen[str], sweep: Path, condition: Any, timeout: float = 300) -> None:
    deadline = time.monotonic() + timeout
    while not condition(entries(sweep)):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)


def assert_same(one: Path, other: Path) -> None:
    """Compare what must not depend on interruptions."""
    first, second = entries(one), entries(other)
    assert list(first) == list(second)
    for name, trial in first.items():
        assert (trial.state, trial.parameters) == (second[name].state, second[name].parameters)
        assert [row["step"] for row in trial.history] == [row["step"] for row in second[name].history]
        values = [row["value"] for row in second[name].history]
        assert [row["value"] for row in trial.history] == pytest.approx(values, rel=1e-5)


def test_a_sweep_leaves_what_it_promises(boxes: Path, tmp_path: Path):
    line = arguments(boxes, tmp_path, "whole", RATE | {"loss.grid": {"values": [16, 32]}}, "steps=10",
                     "sweep.candidates=1", "sweep.search=optuna", "sweep.objectives=[quality,seconds]",
                     "sweep.concurrent=2")  # fmt: skip
    done = tune(*line)
    assert done.returncode == 0, done.stderr
    sweep = tmp_path / "whole"
    assert "2 configurations" in done.stdout and "= 4 trials" in done.stdout and "at the same time" in done.stdout
    assert re.search(r"at most \d:\d\d:\d\d left", done.stdout)
    assert "Traceback" not in done.stderr and "WARNING" not in done.stdout + done.stderr
    rows = list(csv.DictReader((sweep / "leaderboard.csv").open()))
    assert len(rows) == 4 and {row["state"] for row in rows} == {"finished"}
    result = json.loads((sweep / "result.json").read_text())
    for category in ("brick", "slab"):
        own = [row for row in rows if row["category"] == category]
        best = min(own, key=lambda row: float(row["val_chamfer"]))
        assert own[0] == best and result["best"][category]["trial"] == best["trial"]
        assert result["best"][category]["test"] > 0
    winners = {row["trial"] for row in result["best"].values()}
    winners |= {row["trial"] for row in result["shared"]["categories"].values()}
    measured = {
        path.parent.name
        for path in (sweep / "trials").glob("*/result.json")
        if "test" in json.loads(path.read_text())["splits"]
    }
    assert measured == winners, "the test split was read for the winners alone"
    page = (sweep / "report.html").read_text()
    assert "Parallel coordinates" in page and "scatter3d" in page and not re.search(r'<script[^>]+src="http', page)
    events = EventAccumulator(str(sweep / "tensorboard" / "000-brick"))
    events.Reload()
    assert "val/chamfer" in events.Tags()["scalars"] and "_hparams_/experiment" in str(events.summary_metadata)

    again = tune(*line)
    assert again.returncode == 0 and "every trial has ended" in again.stdout
    other = tune(*arguments(boxes, tmp_path, "whole", RATE, "steps=10", "sweep.candidates=1"))
    assert other.returncode == 2 and "another name=" in other.stderr
    trained = drwr("train", f"config={sweep / 'best-brick.yaml'}")
    assert trained.returncode == 0, trained.stderr
    block = json.loads((tmp_path / "best-brick" / "result.json").read_text())["splits"]["test"]
    assert list(block["categories"]) == ["brick"]
    assert block["overall"]["chamfer"] == pytest.approx(result["best"]["brick"]["test"], rel=1e-4)


def test_killed_twice_it_ends_like_an_undisturbed_one(boxes: Path, tmp_path: Path):
    """First before Ray Tune has written anything (of two trials, its own restore would run one), then anywhere.

    With one scheduler: test_tune_course.py kills the course of a sweep under each, after each measurement.
    """
    settings = ["steps=30", "checkpoint.every=5", "precision=float64", "sweep.candidates=1", "sweep.asha.first_rung=10",
                "sweep.categories=[brick]", "sweep.scheduler=halving", "sweep.report=false"]  # fmt: skip
    line = arguments(boxes, tmp_path, "killed", RATE, *settings)
    sweep = tmp_path / "killed"
    process = start(*line)
    wait_until(process, sweep, lambda found: len(found) == 2)
    process.kill()
    process.communicate()
    process = start(*line)
    wait_until(process, sweep, lambda found: any(trial.history for trial in found.values()))
    time.sleep(random.uniform(0, 20))
    process.kill()
    process.communicate()
    kept = {name: trial.history for name, trial in entries(sweep).items() if trial.ended}
    done = tune(*line)
    assert done.returncode == 0, done.stderr
    found = entries(sweep)
    assert len(found) == 2 and all(trial.ended for trial in found.values())
    assert all(found[name].history == history for name, history in kept.items()), "finished trials were kept"
    undisturbed = tune(*arguments(boxes, tmp_path, "undisturbed", RATE, *settings))
    assert undisturbed.returncode == 0, undisturbed.stderr
    assert_same(sweep, tmp_path / "undisturbed")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("killed", "undisturbed")]
    winners = [{name: row["trial"] for name, row in result["best"].items()} for result in results]
    assert winners[0] == winners[1]


def test_a_lost_trial_driver_is_brought_back_and_ctrl_c_saves(boxes: Path, tmp_path: Path):
    """SIGKILL of the process that drives a trial, as when its node is lost; then Ctrl-C, and the same command."""
    line = arguments(boxes, tmp_path, "stopped", RATE, "steps=900", "checkpoint.every=20", "sweep.candidates=1",
                     "sweep.baseline=false", "sweep.categories=[brick]", "sweep.report=false")  # fmt: skip
    sweep = tmp_path / "stopped"
    log = sweep / "trials" / "001-brick" / "train.log"
    process = start(*line)
    wait_until(process, sweep, lambda found: list(sweep.glob("trials/*/checkpoints/step-*")))
    os.kill(driver_of(process.pid), signal.SIGKILL)
    wait_until(process, sweep, lambda found: "resuming after step" in log.read_text())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "the same command continues" in out
    saved = sorted(path.name for path in sweep.glob("trials/*/checkpoints/step-*"))
    assert saved and saved[-1] != "step-00000900"
    done = tune(*line)
    assert done.returncode == 0, done.stderr
    assert log.read_text().count("resuming after step") == 2
    assert entries(sweep)["001-brick"].state == FINISHED


def test_more_trials_than_slots_of_which_some_end_early_and_one_diverges(boxes: Path, tmp_path: Path):
    """A trial that ends early gives its workers' places back, else the sweep would starve (ray issue 54305)."""
    space = {"optimizer.learning_rate": {"values": [1e-5, 1e-8, 1e30]}}
    done = tune(
        *arguments(boxes, tmp_path, "asha", space, "steps=360", "log_every=20", "workers=2", "sweep.concurrent=2",
                   "optimizer.gradient_clip=0", "optimizer.warmup_steps=0", "cluster.cpus_per_worker=0.25",
                   "sweep.search=grid", "sweep.categories=[brick]", "sweep.scheduler=asha", "sweep.report=false",
                   "sweep.asha.first_rung=60", "sweep.asha.reduction=2"), timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 at the same time" in done.stdout
    found = entries(tmp_path / "asha")
    assert len(found) == 4 and found["000-brick"].state == FINISHED
    assert found["002-brick"].state == STOPPED  # the rate is too low to have learnt anything
    assert all(
        trial.last["step"] < 360 and "go on" in trial.reason for trial in found.values() if trial.state == STOPPED
    )
    diverged = found["003-brick"]
    assert diverged.state == FAILED and "finite" in diverged.reason and diverged.reason in done.stdout
    assert "1 trial(s) failed" in done.stdout
    holding = list((tmp_path / "asha").glob("trials/*/checkpoints/step-*"))
    assert len(holding) <= 6


def test_a_population_is_trained_on_ray(boxes: Path, tmp_path: Path):
    done = tune(
        *arguments(boxes, tmp_path, "pbt", RATE, "steps=12", "sweep.candidates=4", "sweep.categories=[brick]",
                   "sweep.scheduler=pbt", "sweep.pbt.interval=6",
                   "sweep.baseline=false", "sweep.report=false")
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    moved = [trial for trial in entries(tmp_path / "pbt").values() if trial.lineage]
    assert len(moved) == 1 and moved[0].lineage[0]["applied"] and moved[0].state == FINISHED
    assert PENDING not in {trial.state for trial in entries(tmp_path / "pbt").values()}


def driver_of(tuner: int) -> int:
    """Return the process of Ray Tune's trial among the descendants of a sweep."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()[1:]]
    family = {tuner}
    for _ in range(4):
        family |= {int(pid) for pid, parent, _ in rows if int(parent) in family}
    found = [int(pid) for pid, _, name in rows if int(pid) in family and name.startswith("ray::ImplicitFunc")]
    assert len(found) == 1, rows
    return found[0]
