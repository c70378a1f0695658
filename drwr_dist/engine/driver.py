"""The driver: start or join Ray, run the workers with Ray Train, show the progress, pass on the wish to stop."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from drwr_dist.cluster_address import why_not
from drwr_dist.config import ClusterConfig, TrainConfig, to_plain
from drwr_dist.data.remote import join
from drwr_dist.engine.board import Board
from drwr_dist.engine.loop import train_worker
from drwr_dist.engine.nodes import check_compile, check_nodes
from drwr_dist.engine.progress import TrainingProgress
from drwr_dist.errors import TrainingError, UsageError
from drwr_dist.interrupts import on_interrupt
from drwr_dist.storage import Storage
from drwr_dist.validation import workers_range

SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray's own list of checkpoints in the run's folder
_USUAL_START = 60  # seconds until workers begin, on a cluster that has room for them
OBJECT_STORE = 128 * 2**20  # bytes; no tensor goes through Ray's object store, and /dev/shm may be small


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run's folder for this process; the lock ends with the process, however that ends.

    Raises:
        UsageError: another process is working on the same run, or the folder can't be written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / ".lock").open("w")
    except OSError as error:
        raise UsageError(f"storage={run}: can't be written ({error.strerror}); give another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{run}: another process is training this run; wait, or take another name=…") from error
        yield


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig, most_workers: int) -> Iterator[None]:
    """Start Ray on this machine, or join the cluster that the configuration or RAY_ADDRESS names."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = os.environ.get("RAY_ADDRESS") or cluster.address
    quiet: dict[str, Any] = {
        "log_to_driver": cluster.verbose,
        "logging_level": logging.INFO if cluster.verbose else logging.ERROR,
    }
    if not cluster.verbose:
        logging.getLogger("ray").setLevel(logging.ERROR)
    if address == "local":
        # The promise is that a laptop runs what a cluster runs: more workers than cores share the cores.
        cores = max(os.cpu_count() or 1, int(most_workers * cluster.cpus_per_worker + 1))
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # a process; nobody takes this machine away
        start_ray(cores, quiet)
    else:
        join_cluster(address, quiet)
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(cores: int, settings: dict[str, Any]) -> None:
    """Start Ray on this machine, for this process.

    Raises:
        TrainingError: it doesn't come up.
    """
    try:
        ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE, **settings)
    except OSError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"Ray does not start on this machine: {reason}") from error


def join_cluster(address: str, settings: dict[str, Any]) -> None:
    """Connect to a running cluster.

    Raises:
        UsageError: there is none at this address, or it refuses our token.
    """
    reason = why_not(address)
    if reason is not None:
        raise UsageError(
            f"cluster.address={address}: {reason}; start one (ray start --head), or set cluster.address=local"
            if "answers" in reason
            else f"cluster.address={address}: {reason}"
        )
    try:
        ray.init(address=address, **settings)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"cluster.address={address}: {reason}") from error


def train(
    config: TrainConfig,
    console: Console,
    *,
    until: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run training to its end, or to an interruption (Ctrl-C, SIGTERM) after which the checkpoint is saved.

    Args:
        config: the run.
        console: shows the progress.
        until: stop after this many of the run's steps, as if interrupted there; None: train them all.
        should_stop: asked now and then; true interrupts the training.

    Returns:
        The workers' outcome: {"outcome": "finished" | "interrupted", "step": …, "skipped": …}.

    Raises:
        UsageError: the nodes of the cluster don't have the same software, or don't share the run's folder or the data.
        TrainingError: training failed; the message says why.
    """
    storage = Storage.at(join(config.storage, config.name))
    run = storage.folder
    check_nodes(storage, config.data.path)
    check_compile(config.compile, scaling(config).use_gpu)
    if note := gpus_left_idle(config, int(ray.cluster_resources().get("GPU", 0))):
        console.print(note, highlight=False, soft_wrap=True)
    # What lies on disk is the truth (see drwr_dist.checkpoint); Ray's list may be cut off or outdated after a kill.
    (run / SNAPSHOT).unlink(missing_ok=True)
    set_up_ray_train(config)
    board = start_board()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": to_plain(config), "board": board, "until": until},
        torch_config=TorchConfig(timeout_s=config.cluster.timeout),
        scaling_config=scaling(config),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.parent),
            failure_config=FailureConfig(max_failures=config.cluster.max_failures),
        ),
    )
    outcome = _fit_with_progress(trainer, board, config, console, should_stop)
    if outcome.get("outcome") == "failed":
        raise TrainingError(outcome["message"])
    return outcome


def set_up_ray_train(config: TrainConfig) -> None:
    """Set what Ray Train passes on from this process's environment: the driver's, or a trial's on any node."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(config.cluster.timeout))
    # Seconds for a placement group. One that a lost node keeps from coming is tried again, up to start_timeout.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    # A checkpoint's report and the end of the run wait for the controller's next look at all workers, by default 2 s.
    look = min(max(0.25, workers_range(config.workers)[1] / 100), 2.0)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(look))


def start_board() -> Any:
    """Start the board on this node, whose end is the driver's end too; on another one it could be lost with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, max_restarts=-1, scheduling_strategy=here)(Board).remote()


def scaling(config: TrainConfig) -> ScalingConfig:
    """Translate `workers` and `cluster` into Ray Train's terms."""
    fewest, most = workers_range(config.workers)
    gpus = config.cluster.gpus_per_worker
    if gpus < 0:
        gpus = 1.0 if ray.cluster_resources().get("GPU", 0) >= fewest else 0.0
    resources = {"CPU": config.cluster.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    return ScalingConfig(
        num_workers=fewest if fewest == most else (fewest, most), use_gpu=gpus > 0, resources_per_worker=resources
    )


def gpus_left_idle(config: TrainConfig, gpus: int) -> str | None:
    """Say that training goes over CPUs although the cluster has GPUs, where they are fewer than the workers."""
    fewest = workers_range(config.workers)[0]
    if config.cluster.gpus_per_worker >= 0 or not 0 < gpus < fewest:
        return None
    return (
        f"training on CPUs: {fewest} workers, but {gpus} GPU(s), and each worker needs one of its own; workers={gpus} "
        "uses them, cluster.gpus_per_worker=1 waits for more, cluster.gpus_per_worker=0 leaves out this line"
    )


def _fit_with_progress(
    trainer: TorchTrainer, board: Any, config: TrainConfig, console: Console, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    """Run `trainer.fit()` in a thread, so that the main thread draws the progress and receives signals."""
    box: dict[str, Any] = {}

    def fit() -> None:
        try:
            box["outcome"] = trainer.fit().return_value
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=fit, daemon=True, name="fit")
    with TrainingProgress(console, config.steps) as progress, on_interrupt(_asking(board, progress)):
        thread.start()
        shown, looked, patient = 0, time.monotonic(), True
        while thread.is_alive():
            thread.join(timeout=0.3)
            shown, silence = _show(progress, board, shown)
            if silence is None:
                silence = time.monotonic() - looked
            else:
                looked = time.monotonic()
            if silence > min(_USUAL_START, config.cluster.start_timeout / 2) and patient:
                patient = False  # says it once for each wait
                progress.notice(f"no workers yet after {silence:.0f} s: {_waiting(config)}")
            if silence > config.cluster.start_timeout and thread.is_alive():
                raise TrainingError(f"no workers for {silence:.0f} s (cluster.start_timeout): {_shortage(config)}")
            patient = patient or silence < 1
            if should_stop():
                board.request_stop.remote()
    if "error" in box:
        raise TrainingError(first_cause(box["error"])) from box["error"]
    return dict(box["outcome"] or {"outcome": "failed", "message": "the workers ended without an outcome"})


def _shortage(config: TrainConfig) -> str:
    """Say what the workers need and what the cluster has."""
    needed, found = _needs(config), ray.cluster_resources()
    has = ", ".join(f"{name} {found.get(name, 0):g}" for name in needed)
    return f"{_wanted(config)} are needed, the cluster has {has}; lower workers=…, or add nodes"


def _waiting(config: TrainConfig) -> str:
    """Say what the workers wait for."""
    try:
        found, free = ray.cluster_resources(), ray.available_resources()
    except Exception:  # whatever Ray raises where its head is away: that alone ends no training
        return "the head of the cluster does not answer"
    has = ", ".join(f"{name} {found.get(name, 0):g} ({free.get(name, 0):g} free)" for name in _needs(config))
    return (
        f"{_wanted(config)} are needed, the cluster has {has}. What an ended run has reserved comes free within three "
        f"minutes; the wait ends after cluster.start_timeout={config.cluster.start_timeout:g} s"
    )


def _needs(config: TrainConfig) -> dict[str, float]:
    """Return what each worker asks of Ray."""
    return dict(scaling(config).resources_per_worker or {})


def _wanted(config: TrainConfig) -> str:
    each = ", ".join(f"{name} {amount:g}" for name, amount in _needs(config).items())
    return f"{workers_range(config.workers)[0]} worker(s) of {each} each"


def _show(progress: TrainingProgress, board: Any, shown: int) -> tuple[int, float | None]:
    """Bring the progress and the notices up to date.

    Returns:
        How many notices were shown, and for how many seconds rank 0 has been silent; None: the board doesn't answer.
    """
    try:
        values, notices, silence = ray.get(board.read.remote(), timeout=5)
    except Exception:  # a busy machine: the next look will do
        return shown, None
    for notice in notices[shown:]:
        progress.notice(notice)
    if values:
        progress.update(values)
    return len(notices), silence


def _asking(board: Any, progress: TrainingProgress) -> Callable[[], bool]:
    """Return what asks the workers to save and end: True the first time, False ever after."""
    asked = False

    def ask() -> bool:
        nonlocal asked
        if asked:
            return False
        asked = True
        progress.notice("stopping: saving a checkpoint first (once more to stop without)")
        board.request_stop.remote()
        return True

    return ask


def first_cause(error: BaseException) -> str:
    """Return one line for an error of Ray Train: what the first failed worker said."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in sorted(failures.items()):
        lines = [line for line in str(failure).splitlines() if line.strip()]
        return f"worker {rank}: {lines[-1].strip() if lines else type(failure).__name__}"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
