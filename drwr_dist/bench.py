"""`python -m drwr_dist.bench`: what training costs on this machine, phase by phase, and what to change."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from drwr_dist import terminal
from drwr_dist.cli import load_options, run_verb
from drwr_dist.config import TrainConfig, from_plain, to_plain
from drwr_dist.data.batch import Example, Failure
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleStream, SampleTable
from drwr_dist.engine.step_ranks import measure_steps
from drwr_dist.errors import DataError, UsageError
from drwr_dist.training import check_against_data
from drwr_dist.validation import validate, workers_range

SAMPLES = 32  # objects that the loader reads for its numbers
MEBIBYTE = 2**20
MOST_WAIT, MOST_TALK, MOST_LOSS = 0.05, 0.2, 0.6  # shares of a step above which there is something to say


@dataclass
class BenchConfig(TrainConfig):
    """Everything that `train` reads, and how long to measure: the same arguments, the same work."""

    bench_steps: int = 20  # steps that are timed, after 4 that warm up
    bench_output: str | None = None  # JSON file for the numbers; null: none


def measure_loader(config: TrainConfig) -> dict[str, float]:
    """Return how many judging views one process reads, for the first time and from its cache, by clock and by CPU time.

    A view is its mask and its smooth silhouette; each object brings its input image too. The clock includes waiting for
    storage and for other programs; CPU time is what a free core would need.
    """
    table = SampleTable.select(load_index(config.data.path), config.data.split, config.data.categories)
    plan = table.plan(config.seed, config.global_batch)
    wanted = config.pose.mode == "predict"
    stream = SampleStream(table, plan, config.data, config.loader.cache_megabytes, wanted)
    numbers = range(min(SAMPLES, len(table.keys)))
    rates: dict[str, float] = {}
    for name in ("first read", "from the cache"):
        clock, processor = time.perf_counter(), time.process_time()
        examples = [stream[0, number] for number in numbers]
        elapsed, used = time.perf_counter() - clock, time.process_time() - processor
        for example in examples:
            if isinstance(example, Failure):
                raise DataError(example.reason)
        views = sum(len(example.masks) for example in examples if isinstance(example, Example))
        rates[name], rates[f"{name}, by CPU time"] = views / elapsed, views / used
    per_object = (config.loader.cache_megabytes * MEBIBYTE - stream.cache_room) / max(1, len(stream.cache))
    return {**rates, "bytes of all objects": per_object * len(table.keys)}


def advice(config: TrainConfig, loader: dict[str, float], steps: dict[str, Any]) -> list[str]:
    """Return what could be changed, the most rewarding first."""
    seconds = steps["seconds"]
    whole = max(sum(seconds.values()), 1e-9)
    lines = []
    if config.loss.method == "plain":
        lines.append("loss.method=auto: the plain repulsion looks at every pair of points")
    if seconds["data wait"] > MOST_WAIT * whole:
        if config.loader.workers == "0":
            lines.append("loader.workers=auto: the step waits for data; loader processes decode meanwhile")
        need = loader["bytes of all objects"] / MEBIBYTE
        if need > config.loader.cache_megabytes:
            lines.append(f"loader.cache_megabytes={int(need) + 1}: then all objects stay decoded in memory")
    if seconds["all-reduce"] > MOST_TALK * whole:
        lines += communication_advice(config, seconds["all-reduce"] / whole)
    if steps["device"] == "cuda" and config.precision in ("float32", "float64"):
        lines.append("precision=auto: bfloat16 in the network, float32 in the loss")
    if steps["device"] == "cpu":
        cores, used = os.cpu_count() or 1, workers_range(config.workers)[1] * config.cluster.cpus_per_worker
        if used < cores and config.global_batch > workers_range(config.workers)[1]:
            most = min(config.global_batch, int(cores / config.cluster.cpus_per_worker))
            lines.append(f"workers={most}: {cores} cores are there, training uses {used:g}")
        if config.precision == "bfloat16":
            lines.append("precision=float32: bfloat16 is slower on most CPUs")
    if seconds["loss"] > MOST_LOSS * whole and config.loss.method != "plain":
        lines.append("model.points or data.supervision_views lower: the loss is most of the step")
    return lines


def communication_advice(config: TrainConfig, share: float) -> list[str]:
    """Return what makes workers exchange less, what changes a training least first."""
    settings, lines = config.communication, []
    spends = f"the exchange of gradients takes {share:.0%} of a step"
    if settings.compression == "none" and settings.average_every == 1:
        lines.append(f"communication.compression=bfloat16: {spends}, this halves its bytes")
    lines.append(f"global_batch={2 * config.global_batch}: {spends}, as many bytes serve twice the objects; where")
    lines[-1] += f" memory is short, communication.accumulate={2 * settings.accumulate}"
    longer = max(8, 2 * settings.average_every)
    lines.append(f"communication.average_every={longer}: workers step alone in between (docs/scaling.md)")
    return lines


def show(config: TrainConfig, loader: dict[str, float], steps: dict[str, Any], console: Console) -> None:
    """Print the tables."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    console.print(f"machine: {os.cpu_count()} cores, {', '.join(devices) or 'no GPU'}, torch {torch.__version__}")
    table = Table("loader, one process", "views per second", "per CPU second", box=None, title_justify="left")
    for name in ("first read", "from the cache"):
        table.add_row(name, f"{loader[name]:.0f}", f"{loader[f'{name}, by CPU time']:.0f}")
    console.print(table)
    seconds = steps["seconds"]
    whole = sum(seconds.values())
    table = Table("phase of a step", "ms", "share", box=None)
    for phase, value in seconds.items():
        table.add_row(phase, f"{1000 * value:.1f}", f"{value / whole:.0%}")
    table.add_row("step", f"{1000 * whole:.1f}", f"{config.global_batch / whole:.1f} objects per second")
    console.print(table)
    memory = f"memory: {steps['memory'] / MEBIBYTE:.0f} MiB a worker"
    if steps["gpu_memory"]:
        memory += f", {steps['gpu_memory'] / MEBIBYTE:.0f} MiB on its GPU"
    console.print(f"{memory}; the gradient has {steps['gradient'] / MEBIBYTE:.1f} MiB")
    lines = advice(config, loader, steps)
    console.print("to change:" if lines else "nothing to change: no phase stands out")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)


def main(arguments: Sequence[str]) -> None:
    """Run the verb."""
    config = load_options(BenchConfig, arguments, verb="bench")
    validate(config)
    if config.bench_steps < 2:
        raise UsageError(f"bench_steps={config.bench_steps}: must be at least 2, with and without an all-reduce")
    workers = workers_range(config.workers)[1]
    training = from_plain({field.name: to_plain(config)[field.name] for field in dataclasses.fields(TrainConfig)})
    check_against_data(training, load_index(config.data.path))
    console = terminal.console()
    console.print(
        f"{config.data.path}: {config.global_batch} objects × {config.data.supervision_views} views a step over "
        f"{workers} worker{'s' if workers > 1 else ''}, {config.model.points} points, grid {config.loss.grid}"
    )
    loader = measure_loader(config)
    steps = measure_steps(training, workers, config.bench_steps)
    show(config, loader, steps, console)
    if config.bench_output:
        content = {"loader": loader, "steps": steps, "advice": advice(config, loader, steps)}
        Path(config.bench_output).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_verb(main)
