"""Does each part of the loss pay? One process trains the demo's network with and without it (an earlier default).

    python benchmarks/default_loss.py                         # every run that has no result yet, one after another
    python benchmarks/default_loss.py --variants demo --seeds 0 1 2
    python benchmarks/default_loss.py --table                 # the table of docs/default_loss.md, from the results

A run takes about 2 minutes on one core of 2026 and ends in one small file, results/default_loss/<variant>-<seed>.json;
what has a file is not run again, so an interrupted benchmark goes on where it stopped. Training reads no ground
truth. Chamfer distances are 100 × (mean distance predicted to target + target to predicted), unsquared, means over
the 8 input views and the objects of a category. The validation and test objects are scored apart and, as they are few,
together in the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from training import train_here

from drwr_dist.cli import load_options
from drwr_dist.config import TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable
from drwr_dist.evaluate import mean_shapes
from drwr_dist.measuring import constant, measure_here, network_predictor
from drwr_dist.model import build_model

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "default_loss"
SPLITS = ("val", "test")
EARLIER = [  # the default that the variants start from; docs/quality.md has today's
    "loss.unary_weight=1", "loss.unary_refinement=1", "loss.repulsion_weight=0.2", "loss.repulsion_weight_end=0.02",
    "loss.coverage_weight=1", "loss.coverage_neighbours=1", "loss.crowding_weight=0",
]  # fmt: skip
COMMON = [f"config={ROOT / 'configs' / 'demo.yaml'}", f"data={ROOT / 'shards' / 'demo'}", "workers=1", *EARLIER]

# name -> (what it is, what differs from the demo)
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "demo": ("the earlier default", []),
    "no-coverage": ("without the coverage term", ["loss.coverage_weight=0"]),
    "no-repulsion": ("without the repulsion", ["loss.repulsion_weight=0"]),
    "constant": (
        "repulsion 0.05, constant",
        ["loss.repulsion_weight=0.05", "loss.repulsion_weight_end=null"],
    ),
    "no-mirror": ("objects not mirrored", ["data.mirror=false"]),
    "wide-start": ("decoder_std 0.025, as released", ["model.decoder_std=0.025"]),
    "released": (
        "released semantics, repulsion 3",
        ["loss.semantics=released", "loss.repulsion_weight=3", "loss.repulsion_weight_end=null"],
    ),
    "released-0.02": (
        "released semantics, repulsion 0.02",
        ["loss.semantics=released", "loss.repulsion_weight=0.02", "loss.repulsion_weight_end=null"],
    ),
    "batch-16": ("16 objects a step", ["global_batch=16"]),
    "half": ("half of the steps", ["steps=500"]),
    "double": ("twice the steps", ["steps=2000"]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    references()
    for seed in options.seeds:
        for variant in options.variants:
            path = RESULTS / f"{variant}-{seed}.json"
            if not path.exists():
                write(path, run(variant, seed))


def run(variant: str, seed: int) -> dict[str, Any]:
    """Train one variant and score it."""
    config = load_options(TrainConfig, [*COMMON, f"seed={seed}", *VARIANTS[variant][1]], verb="benchmark")
    index = load_index(config.data.path)
    model, seconds = train_here(config, SampleTable.select(index, "train"), index.image_size, variant)
    scores = {split: score(network_predictor(model, torch.device("cpu")), split, config) for split in SPLITS}
    return {
        "variant": variant,
        "seed": seed,
        "steps": config.steps,
        "cpu_seconds_per_step": round(seconds, 4),
        **scores,
    }


def score(predictor: Any, split: str, config: TrainConfig) -> dict[str, dict[str, float]]:
    """Return {category: Chamfer ×100 and its two directions} of a predictor on a split."""
    samples = SampleTable.select(load_index(config.data.path), split)
    block = measure_here(predictor, samples, config.data.background)
    names = ("objects", "chamfer", "chamfer_predicted_to_target", "chamfer_target_to_predicted")
    return {category: {name: round(row[name], 3) for name in names} for category, row in block["categories"].items()}


def references() -> None:
    """Score the mean shape and the untrained network, once."""
    path = RESULTS / "references.json"
    if path.exists():
        return
    config = load_options(TrainConfig, COMMON, verb="benchmark")
    index = load_index(config.data.path)
    shapes, _ = mean_shapes(SampleTable.select(index, "test"), config.model.points, config.seed)
    torch.manual_seed(config.seed)
    untrained = network_predictor(build_model(config.model, index.image_size), torch.device("cpu"))
    predictors = {"untrained": untrained, "mean shape": constant(shapes)}
    write(path, {name: {split: score(p, split, config) for split in SPLITS} for name, p in predictors.items()})


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def pooled(result: dict[str, Any], category: str) -> float:
    """Return the Chamfer distance over the objects of all splits."""
    rows = [result[split][category] for split in SPLITS if category in result[split]]
    return float(np.average([row["chamfer"] for row in rows], weights=[row["objects"] for row in rows]))


def table() -> str:
    """Draw the results as a Markdown table: mean over seeds (± standard deviation)."""
    reference = json.loads((RESULTS / "references.json").read_text())
    categories = sorted(reference["mean shape"]["test"])
    lines = [
        "| | seeds | " + " | ".join(categories) + " | CPU s a step |",
        "|---|---|" + "---|" * (len(categories) + 1),
    ]
    for name, result in reference.items():
        lines.append(f"| {name} | | " + " | ".join(f"{pooled(result, c):.2f}" for c in categories) + " | |")
    for variant, (title, _) in VARIANTS.items():
        results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{variant}-[0-9].json"))]
        if results:
            columns = [spread([pooled(result, category) for result in results]) for category in categories]
            seconds = np.mean([result["cpu_seconds_per_step"] for result in results])
            lines.append(f"| {title} | {len(results)} | " + " | ".join(columns) + f" | {seconds:.3f} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2f}"


if __name__ == "__main__":
    main()
