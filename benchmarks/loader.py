"""Views that one core reads and prepares per second: from the shards, and from the cache of decoded objects.

    python benchmarks/loader.py                     # a table, and benchmarks/results/loader-<date>.json
    python benchmarks/loader.py --data DIR --rounds 3 --output none

A view is an image on its background, a binary mask and a smooth silhouette, each float32. `every view` takes all
views of an object as training would take its own, `a training step` one input image and 4 judging views an object,
counted by these; both in batches of 8 objects. Rates are views per CPU second of one process with one thread: the
median over rounds, and the highest, as other work on the machine only takes away.

Two parts of the work by themselves say what no loader on this core could exceed: `distances alone`, the exact distance
transform of each mask, for the first read; `memory alone`, filling new batches of float32 views, for the cache.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np
import torch
from measuring import ROOT, provenance, save, summary

from drwr_dist.config import DataConfig
from drwr_dist.data.faults import FOREGROUND
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleStream, SampleTable
from drwr_dist.silhouette import squares_outside

BATCH = 8  # objects


def passes(data: str, objects: int, everything: bool) -> Callable[[], tuple[int, float, float]]:
    """Return a function that reads the objects twice: views, CPU seconds of the first and of the second pass."""
    table = SampleTable.select(load_index(data), "train")
    numbers = range(min(objects, len(table.keys)))
    config = DataConfig(path=data, supervision_views=table.index.views if everything else 4)

    def run() -> tuple[int, float, float]:
        stream = SampleStream(table, table.plan(0, 8), config, cache_megabytes=2048, view_images=everything)
        taken, views = [], 0
        for _ in range(2):
            start, views = time.process_time(), 0
            for first in range(0, len(numbers), BATCH):
                batch = stream.__getitems__([(0, number) for number in numbers[first : first + BATCH]])
                assert not batch.failures
                views += int(batch.view_mask.sum())
            taken.append(time.process_time() - start)
        return views, taken[0], taken[1]

    return run


def distances_alone(data: str, objects: int) -> float:
    """Return views per CPU second of the distance transforms of so many objects."""
    table = SampleTable.select(load_index(data), "train")
    masks = [table.read(number).masks for number in range(min(objects, len(table.keys)))]
    outside = [(mask < FOREGROUND).astype(np.uint8) for views in masks for mask in views]
    start = time.process_time()
    for mask in outside:
        squares_outside(mask)
    return len(outside) / (time.process_time() - start)


def memory_alone(side: int, views: int = 20, batches: int = 8) -> float:
    """Return views per CPU second of filling batches of float32 images, masks and smooth silhouettes."""
    start = time.process_time()
    for _ in range(batches):
        torch.empty(BATCH * views, 3 + 1 + 1, side, side).fill_(1.0)
    return batches * BATCH * views / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=str(ROOT / "shards" / "demo"))
    parser.add_argument("--objects", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", default="", help="JSON to write; none: nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    cases = {
        "every view": passes(options.data, options.objects, True),
        "a training step": passes(options.data, options.objects, False),
    }
    rates: dict[str, list[float]] = {}
    for turn in range(options.rounds + 1):
        for name, run in cases.items():
            views, first, second = run()
            if turn:
                rates.setdefault(f"{name}, first read", []).append(views / first)
                rates.setdefault(f"{name}, from the cache", []).append(views / second)
        if turn:
            rates.setdefault("distances alone", []).append(distances_alone(options.data, 8))
            rates.setdefault("memory alone", []).append(memory_alone(load_index(options.data).image_size))
    results: dict[str, Any] = {name: summary(values) for name, values in rates.items()}
    for name, row in results.items():
        print(f"{name:34} {row['median']:9.0f} views per CPU second, at best {row['highest']:.0f}")
    save("loader", {"about": provenance(), "views per CPU second": results}, options.output)


if __name__ == "__main__":
    main()
