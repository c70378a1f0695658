"""The course of a sweep over an objective that is known: interrupted anywhere, it ends as an undisturbed one does.

Instead of Ray, a wave here computes a trial's value from its parameters and step; everything else is the real thing.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from drwr_dist import checkpoint
from drwr_dist.config import TuneConfig
from drwr_dist.errors import UsageError
from drwr_dist.sweep import trials
from drwr_dist.sweep.course import Course
from drwr_dist.sweep.definition import refuse_changes, save_definition
from drwr_dist.sweep.space import parse_space
from drwr_dist.sweep.trial_driver import Job, newest_step, stops
from drwr_dist.sweep.trials import FAILED, FINISHED, RUNNING, STOPPED, Trial

SPACE = {
    "optimizer.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "loss.theta": {"low": 1.0, "high": 9.0},
}


def value_of(trial: Trial, step: int) -> float:
    """A bowl whose place differs between categories, and that training deepens."""
    centre = {"chair": 3.0, "table": 6.0}[trial.category]
    distance = abs(trial.parameters["loss.theta"] - centre) + abs(
        math.log10(trial.parameters["optimizer.learning_rate"]) + 3
    )
    return 5.0 + distance + 10.0 / step


class Wave:
    """Bring trials forward as the driver does, or fall dead after a number of measurements."""

    def __init__(self, deaths: list[int] | None = None, failing: str = "", fails_after: int = 0):
        self.deaths = deaths or []
        self.failing, self.fails_after = failing, fails_after  # trial, last step that it measures
        self.measured = 0
        self.trained: list[tuple[str, int]] = []

    def __call__(self, job: Job, wave: Sequence[Trial]) -> bool:
        steps = job.config.steps
        for each in wave:
            trial = trials.load(job.sweep, each.id)
            trial.state = RUNNING
            trials.save(job.sweep, trial)
            for step in stops(job.settings, steps):
                lost = step == steps and newest_step(trials.folder(job.sweep, trial)) < step
                if trial.ended or step > (job.until or steps) or not (trial.value_at(step) is None or lost):
                    continue
                if trial.id == self.failing and step > self.fails_after:
                    trial.state, trial.reason = FAILED, "a loss that is not finite"
                    break
                if self.measured in self.deaths:
                    self.deaths.remove(self.measured)
                    return False
                self.measured += 1
                self.trained.append((trial.id, step))
                folder = trials.folder(job.sweep, trial)
                (folder / checkpoint.FOLDER / f"step-{step:08d}").mkdir(parents=True)
                (folder / checkpoint.FOLDER / f"step-{step:08d}" / "weights").write_text(trial.id)
                checkpoint.prune(folder, 1)
                rows = [row for row in trial.history if row["step"] < step]
                trial.history = [*rows, {"step": step, "value": value_of(trial, step), "seconds": 1.0}]
                trials.save(job.sweep, trial)
            if trial.value_at(steps) is not None:
                trial.state = FINISHED
            trials.save(job.sweep, trial)
        return True


def course_of(folder: Path, wave: Wave, **settings: Any) -> Course:
    config = TuneConfig(steps=90)
    config.sweep.candidates, config.sweep.asha.first_rung, config.sweep.pbt.interval = 8, 10, 30
    for name, value in settings.items():
        setattr(config.sweep, name, value)
    return Course(config, parse_space(SPACE), ["chair", "table"], folder, wave)


def run(folder: Path, wave: Wave, **settings: Any) -> tuple[Course, Any]:
    """Start the sweep again and again, as a user would, until it is through."""
    for _ in range(20):
        course = course_of(folder, wave, **settings)
        found = course.winners() if course.search() else None
        if found is not None:
            return course, found
    raise AssertionError("it never ended")


def outcome(course: Course, found: Any) -> str:
    rows = [(t.id, t.state, t.parameters, [(r["step"], r["value"]) for r in t.history]) for t in course.trials]
    best, shared = found
    return json.dumps([rows, {name: trial.id for name, trial in best.items()}, [trial.id for trial in shared]])


SETTINGS: list[dict[str, Any]] = [
    {"search": "random"},
    {"search": "optuna", "generation": 3},
    {"search": "random", "scheduler": "halving"},
    {"search": "random", "scheduler": "pbt"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(str(v) for v in s.values()))
@pytest.mark.parametrize("deaths", [[0], [1, 1], [3, 10], [7, 8, 9], [16]])
def test_an_interrupted_sweep_ends_like_an_undisturbed_one(tmp_path: Path, settings: dict[str, Any], deaths: list[int]):
    undisturbed = run(tmp_path / "one", Wave(), **settings)
    wave = Wave(list(deaths))
    disturbed = run(tmp_path / "other", wave, **settings)
    assert not wave.deaths, "it was interrupted as often as meant"
    assert outcome(*disturbed) == outcome(*undisturbed)
    assert len(set(wave.trained)) == len(wave.trained), "nothing was trained twice"
    assert {t.candidate for t in undisturbed[0].trials} == set(range(9))


def test_finished_trials_are_kept_and_more_can_be_added(tmp_path: Path):
    run(tmp_path, Wave(), candidates=3)
    wave = Wave()
    course, _ = run(tmp_path, wave, candidates=5)
    assert {name for name, _ in wave.trained} == {"004-chair", "004-table", "005-chair", "005-table"}
    assert len(course.trials) == 12


def test_a_failed_trial_does_not_end_the_sweep_and_can_be_retried(tmp_path: Path):
    course, (best, _) = run(tmp_path, Wave(failing="002-chair"))
    failed = [trial for trial in course.trials if trial.state == FAILED]
    assert [trial.id for trial in failed] == ["002-chair"] and failed[0].reason == "a loss that is not finite"
    assert set(best) == {"chair", "table"}
    again = Wave()
    course, _ = run(tmp_path, again, retry_failed=True)
    assert {name for name, _ in again.trained} == {"002-chair"}
    assert all(trial.state == FINISHED for trial in course.trials)


def test_halving_stops_the_worst_but_never_the_default(tmp_path: Path):
    course, (best, shared) = run(tmp_path, Wave(), scheduler="halving")
    chairs = {trial.candidate: trial for trial in course.trials if trial.category == "chair"}
    assert chairs[0].state == FINISHED
    ended = [trial for trial in chairs.values() if trial.state == STOPPED]
    assert len(ended) >= 5 and all("number" in trial.reason for trial in ended)
    first = sorted(chairs.values(), key=lambda t: t.value_at(10) or 0)
    assert best["chair"].candidate in {trial.candidate for trial in first[:3]}
    assert {trial.category for trial in shared} == {"chair", "table"}
    assert all(trial.state == FINISHED for trial in shared), "the shared best was trained to its end everywhere"


def test_population_members_take_over_weights_and_values(tmp_path: Path):
    course, _ = run(tmp_path, Wave(), scheduler="pbt")
    moved = [trial for trial in course.trials if trial.lineage]
    assert moved and all(trial.candidate for trial in moved), "the default stays as it is"
    for trial in moved:
        entry = trial.lineage[-1]
        assert entry["applied"] and entry["donor"].endswith(trial.category) and entry["parameters"] == trial.parameters
        donor = next(t for t in course.trials if t.id == entry["donor"])
        assert (donor.value_at(entry["step"]) or 0) < (trial.value_at(entry["step"]) or 0)


def files_of(sweep: Path) -> dict[str, str]:
    return {str(path.relative_to(sweep)): path.read_text() for path in sweep.rglob("*") if path.is_file()}


@pytest.mark.parametrize("failing", [f"{number:03d}-chair" for number in range(1, 9)])
def test_a_member_that_fails_later_changes_no_exchange_before(tmp_path: Path, failing: str):
    """Whoever it is, and whenever the sweep is started again: what was exchanged stands."""
    settings: dict[str, Any] = {"scheduler": "pbt", "search": "random"}
    undisturbed = run(tmp_path / "one", Wave(failing=failing, fails_after=30), **settings)
    wave = Wave([20, 24, 33], failing=failing, fails_after=30)
    disturbed = run(tmp_path / "other", wave, **settings)
    assert not wave.deaths
    assert outcome(*disturbed) == outcome(*undisturbed)
    before = files_of(tmp_path / "one")
    again = Wave()
    assert outcome(*run(tmp_path / "one", again, **settings)) == outcome(*undisturbed)
    assert files_of(tmp_path / "one") == before and not again.trained, "nothing is done to what has ended"
    retried = Wave()
    run(tmp_path / "one", retried, retry_failed=True, **settings)
    others = {name: text for name, text in before.items() if failing not in name}
    assert retried.trained == [(failing, 60), (failing, 90)]
    assert {name: text for name, text in files_of(tmp_path / "one").items() if failing not in name} == others


def test_an_exchange_without_the_donors_weights_is_left_out(tmp_path: Path):
    course = course_of(tmp_path, Wave([18]), scheduler="pbt")  # it dies when all members have measured once
    assert not course.search()
    for trial in course.trials:
        for entry in trial.lineage:
            entry["applied"] = False
        trials.save(tmp_path, trial)
    donor = next(trial.lineage[0]["donor"] for trial in course.trials if trial.lineage)
    shutil.rmtree(tmp_path / trials.TRIALS / donor / checkpoint.FOLDER)
    course, _ = run(tmp_path, Wave(), scheduler="pbt")
    first = [entry for trial in course.trials for entry in trial.lineage if entry["step"] == 30]
    assert first and donor not in {entry["donor"] for entry in first}
    assert all(entry["applied"] for trial in course.trials for entry in trial.lineage)


def test_the_size_of_a_population_can_not_change(tmp_path: Path):
    config = course_of(tmp_path, Wave(), scheduler="pbt").config
    save_definition(tmp_path, config)
    refuse_changes(tmp_path, config)
    config.sweep.candidates = 12
    with pytest.raises(UsageError, match=r"sweep\.candidates=12: .* was started with sweep\.candidates=8"):
        refuse_changes(tmp_path, config)
    config.sweep.scheduler = "none"
    with pytest.raises(UsageError, match=r"sweep\.scheduler=none: .* was started with sweep\.scheduler=pbt"):
        refuse_changes(tmp_path, config)
    save_definition(tmp_path, config)
    config.sweep.candidates = 16
    refuse_changes(tmp_path, config)


def test_disk_is_bounded_and_a_winner_without_weights_is_trained_again(tmp_path: Path):
    course, (best, shared) = run(tmp_path, Wave(), keep=1)
    course.free_disk()
    holding = {trial.id for trial in course.trials if newest_step(trials.folder(tmp_path, trial)) >= 0}
    assert holding == {trial.id for trial in [*best.values(), *shared]}
    checkpoint.prune(trials.folder(tmp_path, best["chair"]), 0)
    wave = Wave()
    again = run(tmp_path, wave, keep=1)[1][0]["chair"]
    assert wave.trained == [(best["chair"].id, 90)] and again.last == best["chair"].last
