"""What less communication costs: the demo with two workers under each choice of `communication`.

    python benchmarks/communication.py                              # every run that has no result yet
    python benchmarks/communication.py --variants average-20 --seeds 1
    python benchmarks/communication.py --table                      # the table of docs/scaling.md, from the results

Each run is `python -m drwr_dist.train config=configs/demo.yaml` (about 3 minutes on two cores) and ends in one small
file, results/communication/<variant>-<seed>.json. What has a file is not run again, and a run that was interrupted goes
on from its checkpoint. All variants see every object
equally often. Chamfer distances as in default_loss.py, over the 41 objects of val and test.

Bytes: what a worker sends for each object that it trains on. In a ring over n workers it sends 2 (n - 1) / n times what
is averaged: the gradient, or under local SGD weights and both moments every so many steps; and the agreement.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from default_loss import SPLITS, score, write
from measuring import RESULTS, ROOT, provenance

from drwr_dist.cli import load_options
from drwr_dist.config import TrainConfig
from drwr_dist.engine.agreement import Tally
from drwr_dist.measuring import network_predictor
from drwr_dist.model import build_network
from drwr_dist.run import load_run

FOLDER = RESULTS / "communication"
COMMON = [f"config={ROOT / 'configs' / 'demo.yaml'}", f"data={ROOT / 'shards' / 'demo'}", "workers=2"]
QUIET = ["evaluation.split=", "monitor.pictures_every=0"]

# name -> (what it is, what differs from the demo)
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "gradients": ("gradients at every step", []),
    "bfloat16": ("`compression=bfloat16`", ["communication.compression=bfloat16"]),
    "accumulate-4": (
        "`global_batch=32 accumulate=4`, a quarter of the steps",
        ["communication.accumulate=4", "global_batch=32", "steps=250"],
    ),
    "average-4": ("`average_every=4`", ["communication.average_every=4"]),
    "average-20": ("`average_every=20`", ["communication.average_every=20"]),
    "average-50": ("`average_every=50`", ["communication.average_every=50"]),
}


def configuration(variant: str, seed: int = 0) -> TrainConfig:
    return load_options(TrainConfig, [*COMMON, f"seed={seed}", *VARIANTS[variant][1]], verb="benchmark")


def sent_per_object(config: TrainConfig, parameters: int, workers: int = 2) -> float:
    """Return the bytes that a worker sends for each object that it trains on."""
    settings = config.communication
    step = parameters * (2 if settings.compression == "bfloat16" else 4)
    if settings.average_every > 1:
        step = 3 * 4 * parameters / settings.average_every
    step += 8 * (len(dataclasses.fields(Tally)) + workers)
    return 2 * (workers - 1) / workers * step / (config.global_batch / workers)


def run(variant: str, seed: int, storage: str) -> dict[str, Any]:
    """Train one variant and score it."""
    config = configuration(variant, seed)
    name = f"{variant}-{seed}"
    settings = [*COMMON, *QUIET, f"seed={seed}", f"storage={storage}", f"name={name}", *VARIANTS[variant][1]]
    subprocess.run([sys.executable, "-m", "drwr_dist.train", *settings], check=True, cwd=ROOT)
    trained = load_run(f"{storage}/{name}").model
    predictor = network_predictor(trained, torch.device("cpu"))
    sent = sent_per_object(config, sum(parameter.numel() for parameter in trained.parameters()))
    found = {split: score(predictor, split, config) for split in SPLITS}
    return {"about": provenance(), "variant": variant, "seed": seed, "bytes_sent_per_object": round(sent), **found}


def overall(result: dict[str, Any]) -> float:
    """Return the mean Chamfer distance over all objects of val and test."""
    rows = [row for split in SPLITS for row in result[split].values()]
    return float(np.average([row["chamfer"] for row in rows], weights=[row["objects"] for row in rows]))


def table() -> str:
    """Draw the results as a Markdown table."""
    lines = [
        "| | MB a worker sends per object | of the paper's network | Chamfer ×100, each seed |",
        "|---|---|---|---|",
    ]
    paper = load_options(TrainConfig, [f"config={ROOT / 'configs' / 'paper.yaml'}"], verb="benchmark")
    parameters = sum(parameter.numel() for parameter in build_network(paper, 128).parameters())
    for variant, (title, _) in VARIANTS.items():
        results = [json.loads(path.read_text()) for path in sorted(FOLDER.glob(f"{variant}-[0-9].json"))]
        if results:
            sent = results[0]["bytes_sent_per_object"] / 1e6
            large = sent_per_object(configuration(variant), parameters) / 1e6
            scores = ", ".join(f"{overall(result):.2f}" for result in results)
            lines.append(f"| {title} | {sent:.2f} | {large:.2f} | {scores} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--storage", default=str(ROOT / "runs" / "communication"), help="folder of the runs")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    options = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds if not options.table else []:
        for variant in options.variants:
            path = FOLDER / f"{variant}-{seed}.json"
            if not path.exists():
                write(path, run(variant, seed, options.storage))
    print(table())


if __name__ == "__main__":
    main()
