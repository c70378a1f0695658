"""What Ray Tune runs as a trial: a small process that drives the project's own Ray Train run of one candidate.

It trains from rung to rung, measures on the validation split, writes the journal, and ends itself where the trial is
not worth going on with. Started again after any interruption, it goes on from the run's newest checkpoint.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from drwr_dist.config import SweepConfig, TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.engine import checkpoint, driver
from drwr_dist.errors import DrwrError, TrainingError, UsageError
from drwr_dist.run import save_config
from drwr_dist.sweep import trials
from drwr_dist.sweep.early import goes_on, rungs
from drwr_dist.sweep.measuring import loss_of, measure_on_validation, training_seconds
from drwr_dist.sweep.space import apply
from drwr_dist.sweep.trials import FAILED, FINISHED, RUNNING, STOPPED, Trial
from drwr_dist.validation import validate

STOP = ".stop"  # its presence in the sweep's folder asks every trial to save and end
LOG = "train.log"
LOCK_PATIENCE = 90.0  # seconds that a driver which was lost may take to let go of its run


@dataclass(frozen=True)
class Job:
    """What all trials of a wave have in common."""

    sweep: Path
    config: TrainConfig  # the configuration that the candidates change
    settings: SweepConfig
    until: int | None = None  # last step of this wave; None: all
    early_stopping: bool = True


def run_trial(point: dict[str, Any], job: Job) -> None:
    """Bring one trial as far as this wave goes. Its failures are written to the journal and end it alone."""
    trial = trials.load(job.sweep, point["trial"])
    with _own(trials.folder(job.sweep, trial)), (trials.folder(job.sweep, trial) / LOG).open("a") as log:
        console = Console(file=log, width=150)
        trial.state, trial.reason = RUNNING, ""
        trials.save(job.sweep, trial)
        try:
            _train_and_measure(trial, job, console)
        except Exception as error:
            if not isinstance(error, DrwrError):
                console.print_exception()
            lines = [line for line in str(error).splitlines() if line.strip()]
            text = lines[-1].strip() if lines else ""
            trial.state = FAILED
            trial.reason = text if isinstance(error, DrwrError) else f"{type(error).__name__}: {text}"
        trials.save(job.sweep, trial)


def trial_config(base: TrainConfig, sweep: Path, trial: Trial) -> TrainConfig:
    """Return the configuration of a trial's run: the candidate's, on its category, one checkpoint on disk."""
    config = apply(base, trial.parameters)
    config.storage, config.name, config.overwrite = str(sweep / trials.TRIALS), trial.id, False
    config.data.categories = [trial.category]
    config.evaluation.split = None
    config.checkpoint.keep = 1
    return config


def stops(settings: SweepConfig, steps: int) -> list[int]:
    """Return the steps at which a trial is measured under the sweep's scheduler; the last one is `steps`."""
    if settings.scheduler in ("asha", "halving"):
        return rungs(settings.asha.first_rung, settings.asha.reduction, steps)
    if settings.scheduler == "pbt":
        return [*range(settings.pbt.interval, steps, settings.pbt.interval), steps]
    return [steps]


def newest_step(run: Path) -> int:
    """Return the step of a run's newest checkpoint folder, -1 where there is none."""
    found = checkpoint.folders(run)
    return int(found[0].name.removeprefix("step-")) if found else -1


def _train_and_measure(trial: Trial, job: Job, console: Console) -> None:
    validate(apply(job.config, trial.parameters))  # values that are fine alone need not go together
    config, run = trial_config(job.config, job.sweep, trial), trials.folder(job.sweep, trial)
    save_config(run, config, load_index(config.data.path).image_size)
    last = min(job.until or config.steps, config.steps)
    for stop in stops(job.settings, config.steps):
        lost = stop == config.steps and newest_step(run) < stop  # measured, but the weights have been removed since
        if stop > last or not (trial.value_at(stop) is None or lost):
            continue
        if newest_step(run) < stop and not _train(config, stop, job, console):
            return  # interrupted: the state stays "running", and the same command goes on here
        value = measure_on_validation(run, job.settings.metric, config.data.categories, console)
        trial.record(stop, value, training_seconds(run, config.global_batch))
        trials.save(job.sweep, trial)
        tune.report({"step": stop, job.settings.metric: value})
        if stop < config.steps and job.early_stopping and job.settings.scheduler == "asha":
            reason = _reason_to_stop(trial, stop, job)
            if reason:
                trial.state, trial.reason = STOPPED, reason
                return
    if trial.value_at(config.steps) is not None:
        trial.state = FINISHED


def _train(config: TrainConfig, until: int, job: Job, console: Console) -> bool:
    """Train to step `until`; return whether it was reached."""
    outcome = driver.train(config, console, until=until, should_stop=(job.sweep / STOP).exists)
    if outcome["step"] >= until:
        return True
    if not (job.sweep / STOP).exists():
        raise TrainingError(f"training ended at step {outcome['step']} of {until}")
    return False


def _reason_to_stop(trial: Trial, stop: int, job: Job) -> str:
    """Return why a trial that has been measured at a rung should not go on, or nothing."""
    if trial.candidate == 0:
        return ""
    metric, reduction = job.settings.metric, job.settings.asha.reduction
    own = loss_of(metric, trial.value_at(stop) or math.inf)
    others = [
        loss_of(metric, value)
        for other in trials.load_all(job.sweep)
        if other.category == trial.category and other.id != trial.id and (value := other.value_at(stop)) is not None
    ]
    if goes_on(own, others, reduction):
        return ""
    better = sum(other < own for other in others)
    return f"number {better + 1} of {len(others) + 1} after {stop} steps, the best 1/{reduction} go on"


@contextlib.contextmanager
def _own(run: Path) -> Iterator[None]:
    """Hold the lock of a trial's run, waiting a while for a process that was lost but has not yet ended."""
    deadline = time.monotonic() + LOCK_PATIENCE
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(driver.run_lock(run))
                break
            except UsageError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
        yield
