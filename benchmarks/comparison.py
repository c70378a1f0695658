"""The comparison that the paper makes: its loss and ours against the volumetric projection loss (DPC), on one machine.

    python benchmarks/comparison.py                    # what has no result yet; then the table and the picture
    python benchmarks/comparison.py --only cost        # time of a step and memory alone
    python benchmarks/comparison.py --table            # from the results; runs nothing

Same data (the demo shards), same network (paper's encoder, 512 wide, 1000 points, the released initial weights), same
optimizer, same objects and views at each step, one thread, float32. Three measurements, each in small files below
results/comparison/, none of which is made twice:

- cost: CPU seconds of a step, medians of interleaved rounds, in a process whose allocator keeps its heap (which helps
  the plain form most); by how much the resident memory of a process of its own rises at most in two steps.
- steps: each loss trained for 100 steps (the volume of 128³ for 30: a step of it takes seconds).
- time: each loss trained for as many steps as fit in 40 CPU seconds, its schedules stretched over them.

Chamfer distances ×100 as in default_loss.py, means over the 41 objects of val and test. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch
from communication import overall
from default_loss import SPLITS, score, write
from measuring import RESULTS, ROOT, peak, provenance, reset_peak
from step import HEAP_KEPT, THREADS
from training import train_here, train_step

from drwr_dist.cli import load_options
from drwr_dist.config import TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine import layout
from drwr_dist.measuring import network_predictor
from drwr_dist.model import AllHeads, PointNetwork, build_network

FOLDER = RESULTS / "comparison"
PICTURE = ROOT / "docs" / "images" / "comparison.png"
COMMON = [
    f"config={ROOT / 'configs' / 'demo.yaml'}", f"data={ROOT / 'shards' / 'demo'}", "workers=1", "global_batch=4",
    "model.decoder_std=0.025", "loader.workers=0",
]  # fmt: skip
RELEASED = ["loss.semantics=released", "loss.repulsion_weight=3", "loss.repulsion_weight_end=null"]
VOLUME = [
    "loss.semantics=released", "loss.unary_weight=0", "loss.repulsion_weight=0", "loss.repulsion_weight_end=null",
    "loss.volumetric_weight=1", "loss.keep_points=0.07", "model.scale_head=true",
]  # fmt: skip
STEPS, SECONDS = 100, 40.0
SCORES = 3  # of each training, evenly spaced

# name -> (what it is, what differs, steps of the measurement at equal steps)
METHODS: dict[str, tuple[str, list[str], int]] = {
    "ours-32": ("ours, grid 32", ["loss.grid=32"], STEPS),
    "ours-128": ("ours, grid 128", ["loss.grid=128"], STEPS),
    "plain-32": ("released, all pairs, grid 32", [*RELEASED, "loss.grid=32", "loss.method=plain"], STEPS),
    "dpc-32": ("volume, grid 32", [*VOLUME, "loss.grid=32"], STEPS),
    "dpc-64": ("volume, grid 64", [*VOLUME, "loss.grid=64"], STEPS),
    "dpc-128": ("volume, grid 128", [*VOLUME, "loss.grid=128"], 30),
}


def configuration(method: str, steps: int = STEPS) -> TrainConfig:
    return load_options(TrainConfig, [*COMMON, f"steps={steps}", *METHODS[method][1]], verb="benchmark")


class Stepper:
    """A method's network and two batches, to be stepped at will."""

    def __init__(self, method: str):
        self.config = configuration(method)
        index = load_index(self.config.data.path)
        table = SampleTable.select(index, "train")
        stream = batches(
            table, table.plan(0, self.config.global_batch), self.config.data, self.config.loader,
            rank=0, world_size=1, start=0, stop=2,
        )  # fmt: skip
        self.batches = [batch.to(torch.device("cpu"), torch.float32) for batch in stream]
        torch.manual_seed(0)
        model = build_network(self.config, index.image_size)
        layout.arrange(model, torch.device("cpu"), torch.float32)
        # Points all over the object, as in most of a training: all pairs cost more then.
        torch.nn.init.uniform_(model.decoder.fully_connected.bias, -0.8, 0.8)
        self.network = AllHeads(model)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)

    def step(self, number: int) -> float:
        """Return the CPU seconds of a step in the middle of a training."""
        begin = time.process_time()
        train_step(self.config, self.network, self.optimizer, self.batches[number % 2], STEPS // 2)
        return time.process_time() - begin


def measure_cost(rounds: int = 7) -> dict[str, Any]:
    """Return CPU seconds of a step and peak memory of each method."""
    plain = {name: value for name, value in os.environ.items() if name not in HEAP_KEPT}
    memory = json.loads(subprocess.check_output([sys.executable, __file__, "--memory"], env=plain))
    steppers = {method: Stepper(method) for method in METHODS}
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for turn in range(rounds + 1):
        for method, stepper in steppers.items():
            took = stepper.step(turn)
            if turn:
                seconds[method].append(took)
        print(f"round {turn}", flush=True)
    found = {
        method: {
            "cpu_seconds": round(statistics.median(seconds[method]), 4),
            "ratio_to_ours": round(float(np.median(np.divide(seconds[method], seconds["ours-32"]))), 2),
            "memory_mib": memory[method],
        }
        for method in METHODS
    }
    return {"about": provenance(), "methods": found}


def extra_memory(method: str) -> float:
    """Return the MiB by which the resident memory of this process rises at most while it makes two steps."""
    stepper = Stepper(method)
    before = reset_peak()
    for number in range(2):
        stepper.step(number)
    return round((peak() - before) / 2**20, 1)


def measure_memory() -> dict[str, float]:
    """Return `extra_memory` of each method, each in a process of its own, forked from this one."""
    found = {}
    for method in METHODS:
        with multiprocessing.get_context("fork").Pool(1) as pool:
            found[method] = pool.apply(extra_memory, (method,))
    return found


def run(method: str, steps: int) -> dict[str, Any]:
    """Train a method and score it on the way."""
    config = configuration(method, steps)
    index = load_index(config.data.path)
    due = {round(steps * (place + 1) / SCORES) for place in range(SCORES)}
    points: list[dict[str, float]] = []

    def after(done: int, model: PointNetwork, spent: float) -> None:
        if done in due:
            predictor = network_predictor(model, torch.device("cpu"))
            chamfer = overall({split: score(predictor, split, config) for split in SPLITS})
            points.append({"step": done, "cpu_seconds": round(spent, 2), "chamfer": round(chamfer, 3)})
            print(method, points[-1], flush=True)

    _, seconds = train_here(config, SampleTable.select(index, "train"), index.image_size, method, after)
    return {"about": provenance(), "steps": steps, "cpu_seconds_per_step": round(seconds, 4), "points": points}


def trainings(costs: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Return name -> (method, steps) of every training, the quickest first."""
    found = {f"{method}-steps": (method, steps) for method, (_, _, steps) in METHODS.items()}
    for method in METHODS:
        fit = max(SCORES, int(SECONDS / costs["methods"][method]["cpu_seconds"]))
        found[f"{method}-time"] = (method, fit)
    return dict(sorted(found.items(), key=lambda entry: costs["methods"][entry[1][0]]["cpu_seconds"] * entry[1][1]))


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return content


def table() -> str:
    """Draw the results as a Markdown table."""
    head = ["loss", "CPU ms a step", "ratio", "MiB", "Chamfer, equal steps", f"Chamfer, {SECONDS:.0f} CPU s", "steps"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    costs = load("cost")["methods"]
    for method, (title, _, steps) in METHODS.items():
        cost = costs[method]
        row = [title, f"{1000 * cost['cpu_seconds']:.0f}", f"{cost['ratio_to_ours']:.1f}", f"{cost['memory_mib']:.0f}"]
        for kind in ("steps", "time"):
            done = (FOLDER / f"{method}-{kind}.json").exists()
            row.append(f"{load(f'{method}-{kind}')['points'][-1]['chamfer']:.2f}" if done else "")
            if kind == "steps" and steps != STEPS:
                row[-1] += f" ({steps} steps)"
        row.append(str(load(f"{method}-time")["steps"]) if (FOLDER / f"{method}-time.json").exists() else "")
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def draw() -> None:
    """Draw Chamfer distances over CPU seconds, at equal steps and at equal time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    colours = ["tab:blue", "tab:cyan", "tab:red", "#a0d0a0", "#50a050", "#105010"]
    for axis, kind, label in zip(axes, ("steps", "time"), ("step", "CPU seconds"), strict=True):
        for colour, (method, (title, _, _)) in zip(colours, METHODS.items(), strict=True):
            if (FOLDER / f"{method}-{kind}.json").exists():
                points = load(f"{method}-{kind}")["points"]
                places = [point["step" if kind == "steps" else "cpu_seconds"] for point in points]
                axis.plot(places, [point["chamfer"] for point in points], "o-", color=colour, label=title)
        axis.set(xlabel=label, yscale="log", title=f"equal {kind}")
        axis.grid(which="both", alpha=0.3)
    axes[0].set_ylabel("Chamfer distance ×100")
    axes[1].legend(fontsize="small")
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cost, or names of trainings: METHOD-steps, METHOD-time")
    parser.add_argument("--table", action="store_true", help="print the table, draw the picture, and run nothing")
    parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(json.dumps(measure_memory()))
        return
    cost = FOLDER / "cost.json"
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not options.table:
        if "MALLOC_TRIM_THRESHOLD_" not in os.environ:  # glibc reads it when a program starts
            os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | HEAP_KEPT | THREADS)
        if not cost.exists():
            write(cost, measure_cost())
        for name, (method, steps) in trainings(json.loads(cost.read_text())).items():
            path = FOLDER / f"{name}.json"
            if not path.exists() and (not options.only or name in options.only):
                write(path, run(method, steps))
    print(table())
    draw()


if __name__ == "__main__":
    main()
