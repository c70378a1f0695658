"""Run a function over many jobs in worker processes; the results come in the order of the jobs."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from drwr_dist.errors import DrwrError

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_ordered(function: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Yield function(job) for each job, in the order of the jobs whatever the number of workers.

    Args:
        function: importable by name; gets one job, returns its result.
        jobs: small, picklable descriptions (paths and numbers, no arrays), or an iterator that makes larger ones as
            they are needed: at most 4 per worker exist at a time.
        workers: processes; 0 or 1 runs here.

    Raises:
        DrwrError: a worker process died, of lack of memory for instance; errors of `function` pass through.
    """
    if workers <= 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                waiting.append(pool.submit(function, job))
                if len(waiting) >= 4 * workers:  # bounds what finished results can hold in memory
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise DrwrError(
                "a worker process died, perhaps for lack of memory; try fewer workers (workers=1 shows which object)"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
