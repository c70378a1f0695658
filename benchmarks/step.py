"""The whole training step, with the plain repulsion and with ours, and where its time goes.

    python benchmarks/step.py                       # a table, and benchmarks/results/step-<date>.json
    python benchmarks/step.py --rounds 3 --output none

8 objects × 4 views of 128 × 128 pixels from the demo shards, 2000 points, grid 64, the paper's network, float32, one
thread, the default loss. Both forms run in turns in one process whose allocator keeps its heap (the program starts
itself again so). Times are CPU milliseconds; ratios are medians of plain over ours within a round.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

import numpy as np
import torch
from measuring import ROOT, provenance, save, summary

from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine.step_times import StepTimer
from drwr_dist.losses.repulsion import repulsion

GRID, POINTS = 64, 2000
HEAP_KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def configuration(method: str) -> TrainConfig:
    config = TrainConfig()
    config.data.path = str(ROOT / "shards" / "demo")
    config.loss.grid, config.loss.method, config.model.points = GRID, method, POINTS
    return config


def load_batches(config: TrainConfig, count: int) -> tuple[list[Batch], int]:
    index = load_index(config.data.path)
    table = SampleTable.select(index, "train")
    stream = batches(
        table, table.plan(0, config.global_batch), config.data, config.loader, rank=0, world_size=1, start=0, stop=count
    )
    return [batch.to(torch.device("cpu"), torch.float32) for batch in stream], index.image_size


def repulsion_alone(method: str, views: int) -> float:
    """Return CPU seconds of forward and backward of the repulsion of all views of a step."""
    generator = torch.Generator().manual_seed(0)
    places = (torch.rand(views, POINTS, 2, generator=generator) * (GRID - 1)).requires_grad_()
    weights = torch.rand(views, POINTS, generator=generator).requires_grad_()
    start = time.process_time()
    at_once = 4 if method == "plain" else views  # all pairs of all views would take gigabytes; it is the same work
    for view in range(0, views, at_once):
        part = slice(view, view + at_once)
        repulsion(places[part], weights[part], None, 10.0, GRID + 1.0, method).sum().backward()
    return time.process_time() - start


def measure(rounds: int) -> dict[str, Any]:
    found, image_size = load_batches(configuration("auto"), 2)
    timers = {
        method: StepTimer(configuration(method), image_size, torch.device("cpu"), time.process_time)
        for method in ("plain", "auto")
    }
    for timer in timers.values():  # points all over the object, as in most of a training: all pairs cost more then
        torch.manual_seed(0)
        torch.nn.init.uniform_(timer.model.decoder.fully_connected.bias, -0.8, 0.8)
    views = found[0].masks.shape[0] * found[0].masks.shape[1]
    milliseconds: dict[str, dict[str, list[float]]] = {method: {} for method in timers}
    for turn in range(rounds + 1):
        for method, timer in timers.items():
            row = timer.step(found[turn % 2], turn)
            row |= {"step": sum(row.values()), "repulsion alone": repulsion_alone(method, views)}
            if turn:  # the first one warms up
                for phase, seconds in row.items():
                    milliseconds[method].setdefault(phase, []).append(1000 * seconds)
    ratio = np.divide(milliseconds["plain"]["step"], milliseconds["auto"]["step"])
    share = np.divide(milliseconds["auto"]["repulsion alone"], milliseconds["auto"]["step"])
    return {
        "milliseconds": {
            method: {phase: summary(values) for phase, values in phases.items()}
            for method, phases in milliseconds.items()
        },
        "step, plain / auto": summary(ratio.tolist()),
        "share of the repulsion in the step, auto": summary(share.tolist()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", default="", help="JSON to write; none: nothing")
    options = parser.parse_args()
    if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # glibc reads it when a program starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HEAP_KEPT | THREADS)
    torch.set_num_threads(1)
    results = measure(options.rounds)
    for method, phases in results["milliseconds"].items():
        print(method + ": " + ", ".join(f"{phase} {row['median']} ms" for phase, row in phases.items()))
    for name in ("step, plain / auto", "share of the repulsion in the step, auto"):
        print(name, results[name])
    save("step", {"about": provenance()} | results, options.output)


if __name__ == "__main__":
    main()
