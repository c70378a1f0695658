"""Run a function over many jobs in worker processes or Ray tasks; the results come in the order of the jobs."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, TypeVar

from drwr_dist.cluster_address import why_not
from drwr_dist.errors import DrwrError, UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")

ENGINES = ("auto", "processes", "ray")
_AHEAD = 4  # jobs per worker that are under way or waiting to be written: bounds what results can hold in memory
_WITHOUT_CPU = 300.0  # seconds for which a cluster may be without any CPU
_DIED = "a worker process died, perhaps for lack of memory; try fewer workers (workers=1 shows which object)"


@dataclass(frozen=True)
class Crew:
    """Who does the work: so many processes here, or tasks on a Ray cluster."""

    workers: int = 0  # 0: one per core, of this machine or of the cluster; 1: this process, whatever the engine
    engine: str = "auto"  # ray | processes | auto: Ray where RAY_ADDRESS names a cluster, else processes
    places: tuple[tuple[str, str], ...] = ()  # (key, path) of what the work reads, and all nodes must see

    def uses_ray(self) -> bool:
        """Say whether the work goes to Ray."""
        named = self.engine == "ray" or (self.engine == "auto" and bool(os.environ.get("RAY_ADDRESS")))
        return named and self.workers != 1


def run_ordered(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int | Crew) -> Iterator[Result]:
    """Yield function(job) for each job, in the order of the jobs whatever the number of workers.

    Args:
        function: importable by name; gets one job, returns its result.
        jobs: small, picklable descriptions (paths and numbers, no arrays), or an iterator that makes larger ones as
            they are needed: at most 4 per worker exist at a time.
        workers: number of processes, or who does the work; 1 runs here.

    Raises:
        UsageError: a node of the cluster doesn't see what the work reads.
        DrwrError: a worker process died, of lack of memory for instance; errors of `function` pass through.
    """
    crew = workers if isinstance(workers, Crew) else Crew(max(1, workers), "processes")
    if crew.uses_ray():
        yield from _run_on_ray(function, jobs, crew)
        return
    count = crew.workers or len(os.sched_getaffinity(0))
    if count == 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_start_worker) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) >= _AHEAD * count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DrwrError(_DIED) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """Prepare a worker process: Ctrl-C is the parent's business, and when the parent is killed, nobody stays behind."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def follow() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _run_on_ray(function: Callable[[Job], Result], jobs: Iterable[Job], crew: Crew) -> Iterator[Result]:
    """As `run_ordered`, on the cluster that RAY_ADDRESS names, or on a Ray of our own."""
    import ray

    from drwr_dist.node_views import check_seen

    with session(crew):
        check_seen(crew.places)
        count = crew.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        task = ray.remote(num_cpus=1)(function)
        waiting: deque[Any] = deque()
        try:
            for job in jobs:
                waiting.append(task.remote(job))
                if len(waiting) >= _AHEAD * count:
                    yield _take(waiting.popleft())
            while waiting:
                yield _take(waiting.popleft())
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # what `function` raised
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
            raise DrwrError(_DIED) from error
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)


def _take(reference: Any) -> Any:
    """Wait for a task, which may take as long as it needs while there is a CPU that could run it."""
    import ray

    while not ray.wait([reference], timeout=_WITHOUT_CPU)[0]:
        if ray.cluster_resources().get("CPU", 0) < 1:
            raise DrwrError(
                f"the Ray cluster has no CPU to run a task on, and nothing has come for {_WITHOUT_CPU:.0f} s; add "
                "nodes, or use workers=1 to work in this process"
            )
    return ray.get(reference)


@contextmanager
def session(crew: Crew) -> Iterator[None]:
    """Connect to Ray where the crew uses it, and leave it as it was found; one session can serve several calls."""
    import ray

    if not crew.uses_ray() or ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address := os.environ.get("RAY_ADDRESS"):
        if address != "local" and (reason := why_not(address)):
            raise UsageError(f"RAY_ADDRESS={address}: {reason}")
        ray.init(address=address, **quiet)
    else:
        cores = crew.workers or len(os.sched_getaffinity(0))
        ray.init(address="local", num_cpus=cores, include_dashboard=False, object_store_memory=256 * 2**20, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
