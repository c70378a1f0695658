"""What Ray Tune runs as a trial: a small process that drives the project's own Ray Train run of one candidate.

While the run trains and measures itself on the validation split, this process writes the journal, and ends the run
where it is not worth going on with. Started again after any interruption, it goes on from the run's newest checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from rich.console import Console

from drwr_dist import checkpoint
from drwr_dist.config import SweepConfig, TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.plan import Plan
from drwr_dist.data.stream import SampleTable
from drwr_dist.engine import driver
from drwr_dist.errors import DrwrError, TrainingError, UsageError
from drwr_dist.run import save_config
from drwr_dist.sweep import trials
from drwr_dist.sweep.early import goes_on, rungs
from drwr_dist.sweep.measuring import loss_of, measurements
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
    if (job.sweep / STOP).exists():
        return  # those that the wave has not begun stay as they are, for the same command to begin
    trial = trials.load(job.sweep, point["trial"])
    with _own(trials.folder(job.sweep, trial)), (trials.folder(job.sweep, trial) / LOG).open("a") as log:
        console = Console(file=log, width=150)
        trial.state, trial.reason = RUNNING, ""
        trials.save(job.sweep, trial)
        try:
            _train(trial, job, console)
        except Exception as error:
            if not isinstance(error, DrwrError):
                console.print_exception()
            lines = [line for line in str(error).splitlines() if line.strip()]
            text = lines[-1].strip() if lines else ""
            trial.state = FAILED
            trial.reason = text if isinstance(error, DrwrError) else f"{type(error).__name__}: {text}"
        trials.save(job.sweep, trial)
        if trial.last:
            tune.report({"step": trial.last["step"], job.settings.metric: trial.last["value"]})


def trial_config(config: TrainConfig, settings: SweepConfig, sweep: Path, trial: Trial, views: int) -> TrainConfig:
    """Make a candidate's configuration that of a trial's run: on its category, measured where trials are compared.

    Args:
        config: of the candidate; it is changed, and returned.
        settings: of the sweep.
        sweep: its folder.
        trial: which.
        views: of an object in the dataset; all of them are input views of the validation.
    """
    config.storage, config.name, config.overwrite = str(sweep / trials.TRIALS), trial.id, False
    config.data.categories = [trial.category]
    config.evaluation.split, config.evaluation.checkpoint = None, "last"
    config.checkpoint.keep = 1
    config.validation.every = interval(settings, config)
    config.validation.metric, config.validation.views = settings.metric, views
    return config


def interval(settings: SweepConfig, config: TrainConfig) -> int:
    """Return the steps between validations: what the scheduler needs, else what the candidate's configuration says."""
    if settings.scheduler == "none":
        return config.validation.every or max(config.steps, 1)
    return settings.pbt.interval if settings.scheduler == "pbt" else settings.asha.first_rung


def stops(settings: SweepConfig, steps: int) -> list[int]:
    """Return the steps at which trials are compared under the sweep's scheduler; the last one is `steps`."""
    if settings.scheduler in ("asha", "halving"):
        return rungs(settings.asha.first_rung, settings.asha.reduction, steps)
    if settings.scheduler == "pbt":
        return [*range(settings.pbt.interval, steps, settings.pbt.interval), steps]
    return [steps]


def newest_step(run: Path) -> int:
    """Return the step of a run's newest checkpoint folder, -1 where there is none."""
    found = checkpoint.folders(run)
    return int(found[0].name.removeprefix("step-")) if found else -1


def _train(trial: Trial, job: Job, console: Console) -> None:
    """Train to the end of the wave, or until the trial is not worth going on with, or everything is to stop."""
    candidate = apply(job.config, trial.parameters)
    validate(candidate)  # values that are fine alone need not go together
    index = load_index(job.config.data.path)
    config = trial_config(candidate, job.settings, job.sweep, trial, index.views)
    validate(config)  # it is measured when the scheduler wants it
    run = trials.folder(job.sweep, trial)
    save_config(run, config, index.image_size)
    last = min(job.until or config.steps, config.steps)
    plan = SampleTable.select(index, config.data.split, config.data.categories).plan(config.seed, config.global_batch)
    watch = _Watch(trial, job, plan, decided=newest_step(run) - 1)
    if newest_step(run) < last:
        outcome = driver.train(config, console, until=last, should_stop=watch)
        trial.history = measurements(run, job.settings.metric, plan)
        if outcome["step"] < last and not watch.reason:
            if (job.sweep / STOP).exists():
                return  # the state stays "running", and the same command goes on here
            raise TrainingError(f"training ended at step {outcome['step']} of {last}")
    if trial.value_at(config.steps) is not None:
        trial.state = FINISHED
    elif watch.reason:
        trial.state, trial.reason = STOPPED, watch.reason
    elif trial.value_at(last) is None:
        raise TrainingError(f"nothing was measured after step {last}")


class _Watch:
    """Looks at a trial from its driver while it trains: writes down what it measures, says whether it is to end."""

    def __init__(self, trial: Trial, job: Job, plan: Plan, decided: int):
        self.reason = ""
        self._trial, self._job, self._plan = trial, job, plan
        self._decided = decided  # step up to which it has been let go on

    def __call__(self) -> bool:
        if not self.reason:
            self._look()
        return bool(self.reason) or (self._job.sweep / STOP).exists()

    def _look(self) -> None:
        job, trial = self._job, self._trial
        found = measurements(trials.folder(job.sweep, trial), job.settings.metric, self._plan)
        if [row["step"] for row in found] == [row["step"] for row in trial.history]:
            return
        trial.history = found
        trials.save(job.sweep, trial)
        if job.settings.scheduler != "asha" or not job.early_stopping or trial.candidate == 0:
            return
        for stop in stops(job.settings, job.config.steps)[:-1]:
            if stop > self._decided and trial.value_at(stop) is not None and not self.reason:
                self.reason = self._reason_to_stop(stop)
                self._decided = stop

    def _reason_to_stop(self, stop: int) -> str:
        """Return why the trial should not go on from a rung, or nothing."""
        job, trial = self._job, self._trial
        metric, reduction = job.settings.metric, job.settings.asha.reduction
        losses = {
            other.id: loss_of(metric, value)
            for other in [trial, *trials.load_all(job.sweep)]
            if other.category == trial.category and (value := other.value_at(stop)) is not None
        }
        own = losses.pop(trial.id)
        if goes_on(own, list(losses.values()), reduction):
            return ""
        better = sum(other < own for other in losses.values())
        return f"number {better + 1} of {len(losses) + 1} after {stop} steps, the best 1/{reduction} go on"


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
