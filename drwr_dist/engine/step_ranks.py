"""Time training steps on as many local processes as there would be workers, without Ray."""

from __future__ import annotations

import json
import resource
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from drwr_dist.config import TrainConfig, from_plain, to_plain
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine import communication
from drwr_dist.engine.step_times import PHASES, StepTimer
from drwr_dist.errors import DataError

WARM_UP = 4  # steps that are not counted: memory is taken, algorithms are chosen


def measure_steps(config: TrainConfig, workers: int, steps: int) -> dict[str, Any]:
    """Train `steps` steps on `workers` local processes and time their phases.

    Args:
        config: of the training; its `workers` is not read.
        workers: processes, each with its part of every global batch.
        steps: that are counted, after a few that are not.

    Returns:
        {"seconds": median seconds of each phase on rank 0, "memory": bytes that the largest process holds,
        "gpu_memory": bytes, 0 without a GPU, "gradient": bytes of the gradient, "device": its type}.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        job = {"config": to_plain(config), "workers": workers, "steps": steps, "folder": folder}
        job["address"] = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        free.close()
        mp.start_processes(_rank, args=(job,), nprocs=workers, start_method="spawn")  # type: ignore
        reports: list[dict[str, Any]] = [
            json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(workers)
        ]
    memory = {key: max(report[key] for report in reports) for key in ("memory", "gpu_memory")}
    return reports[0] | memory


def _rank(rank: int, job: dict[str, Any]) -> None:
    config, workers = from_plain(job["config"]), job["workers"]
    device = (
        torch.device("cuda", rank % torch.cuda.device_count()) if torch.cuda.is_available() else torch.device("cpu")
    )
    torch.set_num_threads(max(1, int(config.cluster.cpus_per_worker)))
    if workers > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=job["address"], rank=rank, world_size=workers)
    index = load_index(config.data.path)
    timer = StepTimer(config, index.image_size, device, world_size=workers)
    rows = _timed_steps(timer, SampleTable.select(index, config.data.split, config.data.categories), rank, job)
    gpu_memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    report = {
        "seconds": _summary(rows),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "gpu_memory": int(gpu_memory),
        "gradient": sum(p.numel() * p.element_size() for p in timer.model.parameters()),
        "device": device.type,
    }
    (Path(job["folder"]) / f"{rank}.json").write_text(json.dumps(report))
    if workers > 1:
        dist.destroy_process_group()


def _timed_steps(timer: StepTimer, table: SampleTable, rank: int, job: dict[str, Any]) -> list[dict[str, float]]:
    """Return a row per step: its phases, whether gradients were averaged ("synchronised"), the averaging of weights."""
    config = timer.config
    period = config.communication.average_every
    stream = batches(
        table,
        table.plan(config.seed, config.global_batch),
        config.data,
        config.loader,
        rank=rank,
        world_size=job["workers"],
        start=0,
        stop=WARM_UP + job["steps"],
        view_images=config.pose.mode == "predict",
        gpu=timer.device.type == "cuda",
    )
    rows = []
    begin = time.perf_counter()
    for number, batch in enumerate(stream):
        waited = time.perf_counter() - begin
        if batch.failures:
            raise DataError(batch.failures[0].reason)
        # Every other step leaves out the all-reduce: the difference is what it costs beyond what overlaps.
        together = number % 2 == 0 and period == 1
        row = {"data wait": waited, **timer.step(batch.to(timer.device, timer.dtype), number, together)}
        begin = time.perf_counter()
        if period > 1 and job["workers"] > 1:
            communication.average(timer.model, timer.optimizer)
        average = (time.perf_counter() - begin) / period  # of the averages, every so-many-th is made in a training
        rows.append(row | {"synchronised": float(together), "average": average})
        begin = time.perf_counter()
    return rows[WARM_UP:]


def _summary(rows: list[dict[str, float]]) -> dict[str, float]:
    def median(phase: str, together: float) -> float:
        return statistics.median([row[phase] for row in rows if row["synchronised"] == together] or [0.0])

    seconds = {phase: statistics.median(row[phase] for row in rows) for phase in PHASES if phase in rows[0]}
    # The mean: an epoch that is read for the first time is what one waits for.
    seconds["data wait"] = statistics.fmean(row["data wait"] for row in rows)
    alone = median("backward", 0.0)
    exchange = max(0.0, median("backward", 1.0) - alone) + statistics.median(row["average"] for row in rows)
    seconds |= {"backward": alone, "all-reduce": exchange}
    return {phase: seconds[phase] for phase in PHASES}
