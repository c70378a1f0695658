"""One wave of trials on Ray Tune: every trial that isn't done, as many at a time as the cluster holds.

Each wave is a new, small Tune experiment over the trials that the journal says are left. Nothing is ever restored from
Tune's own files: an experiment that died before its first state file restores with one of its trials, silently.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray import tune

from drwr_dist.config import SweepConfig, TrainConfig
from drwr_dist.engine import driver
from drwr_dist.errors import TrainingError, UsageError
from drwr_dist.sweep import trials
from drwr_dist.sweep.capacity import concurrent_trials
from drwr_dist.sweep.trial_driver import STOP, Job, run_trial
from drwr_dist.sweep.trials import FAILED, Trial
from drwr_dist.validation import workers_range

SCRATCH = ".ray_tune"
LEAST_CPUS = 0.001  # of a driver; Ray Tune takes no trial that reserves nothing


def is_local(config: TrainConfig) -> bool:
    """Say whether Ray is started on this machine, for this sweep."""
    return (os.environ.get("RAY_ADDRESS") or config.cluster.address) == "local"


def driver_cpus(config: TrainConfig, settings: SweepConfig) -> float:
    """Return the CPUs that Ray reserves for the process which drives a trial: next to none where Ray is started here.

    There it has at most one CPU more than the workers of all trials take. Drivers that reserved more, together, would
    take the places of the last trial's workers, which would wait for them until the trial fails.
    """
    return LEAST_CPUS if is_local(config) else max(settings.driver_cpus, LEAST_CPUS)


@contextlib.contextmanager
def ray_for_trials(config: TrainConfig, settings: SweepConfig) -> Iterator[int]:
    """Start or join Ray; yield how many trials run at the same time on it.

    Where Ray is started here, the cores are the workers' alone: the drivers of trials, which only wait, come on top.

    Args:
        config: of every trial.
        settings: of the sweep.

    Raises:
        UsageError: not even one fits.
    """
    workers, cpus, cores = workers_range(config.workers)[1], config.cluster.cpus_per_worker, os.cpu_count() or 1
    reserved = driver_cpus(config, settings)
    if is_local(config):
        # A trial is a handful of processes; Ray would warn of every one beyond a few per core.
        os.environ.setdefault("RAY_worker_maximum_startup_concurrency", str(8 * cores))
    with driver.ray_session(config.cluster, max(workers, math.ceil(cores / cpus))):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if is_local(config):
            nodes[0]["CPU"], reserved = max(cores, workers * cpus), 0.0
        yield _slots(config, nodes, reserved, settings.concurrent)


def _slots(config: TrainConfig, nodes: list[dict[str, float]], reserved: float, limit: int) -> int:
    most = workers_range(config.workers)[1]
    per_worker = dict(driver.scaling(config).resources_per_worker or {})
    count = concurrent_trials(nodes, most, per_worker, reserved)
    if not count:
        raise UsageError(
            f"workers={config.workers}: a trial of {most} worker(s) of {per_worker} does not fit onto the cluster; "
            "lower workers, cluster.cpus_per_worker or cluster.gpus_per_worker (fractions are possible with workers=1)"
        )
    return min(count, limit) if limit else count


def run_wave(job: Job, wave: Sequence[Trial], at_once: int, watch: Callable[[], None]) -> bool:
    """Run trials until all have come as far as the wave goes; return False if it was interrupted.

    Args:
        job: what they have in common.
        wave: the trials.
        at_once: how many at the same time.
        watch: called about twice a second, in the caller's thread.
    """
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the journal and our own events say more
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # under the new one, verbose=0 still prints tables
    scratch = job.sweep / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    reserved = {"cpu": driver_cpus(job.config, job.settings)}
    trainable = tune.with_resources(tune.with_parameters(run_trial, job=job), reserved)
    tuner = tune.Tuner(
        trainable,
        param_space={"trial": tune.grid_search([trial.id for trial in wave])},
        tune_config=tune.TuneConfig(max_concurrent_trials=at_once, metric=None),
        run_config=tune.RunConfig(
            name="wave",
            storage_path=str(scratch),
            failure_config=tune.FailureConfig(max_failures=job.settings.max_failures),
            verbose=0,
        ),
    )
    results = _fit(tuner, watch)
    for result in results:
        if result.error and result.config:
            _mark_failed(job, result.config["trial"], driver.first_cause(result.error))
    shutil.rmtree(scratch, ignore_errors=True)
    watch()
    return not (job.sweep / STOP).exists()


def _fit(tuner: tune.Tuner, watch: Callable[[], None]) -> Any:
    """Run `tuner.fit()` in a thread: the main thread draws and receives signals."""
    box: dict[str, Any] = {}

    def fit() -> None:
        try:
            box["results"] = tuner.fit()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=fit, daemon=True, name="tune")
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.5)
        watch()
    if "error" in box:
        raise TrainingError(f"Ray Tune: {driver.first_cause(box['error'])}") from box["error"]
    return box["results"]


def _mark_failed(job: Job, trial_id: str, reason: str) -> None:
    """Write down that the process which drives a trial was lost, and not brought back."""
    trial = trials.load(job.sweep, trial_id)
    if not trial.ended:
        trial.state, trial.reason = FAILED, f"its driver was lost: {reason}"
        trials.save(job.sweep, trial)
