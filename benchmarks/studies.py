"""What the shapes depend on: views, points, grid and training objects; and what wrong silhouettes and cameras do.

    python benchmarks/studies.py --data DATA                      # every run that has no result yet; hours
    python benchmarks/studies.py --data DATA --studies noise --seeds 0
    python benchmarks/studies.py --table                          # tables, docs/images/studies.png and noise.png

DATA has 20 views an object: `make pretrained` builds such a dataset, build/open_shapes_cc. Chairs alone: 42 to learn
from, 11 for the test. Each run is 600 steps of configs/demo.yaml with a small network, changed in one thing; it ends in
one small file, results/studies/<study>/<value>-<method>-<seed>.json, and what has a file is not run again. Numbers:
test Chamfer × 100, mean over all input views, which are never disturbed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import quality
import torch
from measuring import RESULTS, ROOT, provenance
from noise import MASKS, disturb
from quality import NETWORK, produce, score
from training import CPU, train_here

from drwr_dist.cli import load_options
from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleStream, SampleTable
from drwr_dist.measuring import network_predictor

STEPS, VIEWS = 600, 8
METHODS = quality.METHODS | {"despeckled": ("ours, with data.despeckle=16", ["data.despeckle=16"])}
FOLDER = RESULTS / "studies"
PICTURES = ROOT / "docs" / "images"


@dataclass(frozen=True)
class Change:
    """How a run differs from the others."""

    keys: tuple[str, ...] = ()  # of the configuration
    views: int = VIEWS  # of each object that are ever looked at
    objects: int = 0  # to learn from; 0: all
    masks: str = ""  # what is wrong with the silhouettes
    degrees: float = 0.0  # by which cameras are off


# study -> (title, methods, value -> change)
STUDIES: dict[str, tuple[str, tuple[str, ...], dict[str, Change]]] = {
    "noise": (
        "what is wrong in training",
        ("ours", "despeckled", "dpc"),
        {
            "nothing": Change(),
            **{name: Change(masks=name) for name in MASKS},
            **{f"{degrees} degrees": Change(degrees=degrees) for degrees in (1, 3, 5)},
        },
    ),
    "views": (
        "views of each object",
        ("ours",),
        {
            str(count): Change(keys=(f"data.supervision_views={min(4, count)}",), views=count)
            for count in (1, 2, 5, 8, 20)
        },
    ),
    "points": (
        "points",
        ("ours",),
        {str(count): Change(keys=(f"model.points={count}",)) for count in (500, 1000, 2000, 4000, 8000)},
    ),
    "grid": (
        "pixels of the grid",
        ("ours",),
        {str(side): Change(keys=(f"loss.grid={side}",)) for side in (16, 32, 64, 128)},
    ),
    "objects": ("training objects", ("ours",), {str(count): Change(objects=count) for count in (5, 10, 20, 42)}),
}


class FewerViews(SampleStream):
    """A stream that looks at the first views of each object alone."""

    views = VIEWS

    def views_of(self, epoch: int, sample: int, views: int) -> tuple[int, list[int]]:
        """Choose as ever, but among the first ones."""
        return super().views_of(epoch, sample, min(views, self.views))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="folder of a dataset with 20 views")
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="write tables and plots, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.table:
        if not options.data:
            parser.error("--data: the folder of a dataset with 20 views")
        for seed in options.seeds:
            for study in options.studies:
                for method in STUDIES[study][1]:
                    for value, change in STUDIES[study][2].items():
                        path = FOLDER / study / f"{value.replace(' ', '_')}-{method}-{seed}.json"
                        produce(path, lambda a=(study, value, method, seed, change): run(options.data, *a))
    for study in STUDIES:
        print(table(study), end="\n\n")
    draw()


def run(data: str, study: str, value: str, method: str, seed: int, change: Change) -> dict[str, Any]:
    """Train once and score the test chairs."""
    common = [f"config={ROOT / 'configs' / 'demo.yaml'}", f"data={data}", "data.categories=[chair]", "workers=1"]
    keys = [*common, f"steps={STEPS}", f"seed={seed}", *NETWORK, *METHODS[method][1], *change.keys]
    config = load_options(TrainConfig, keys, verb="benchmark")
    index = load_index(data)
    samples = fewer_objects(SampleTable.select(index, "train", config.data.categories), change.objects)
    stream = disturbed(config, samples, change)
    title = f"{study} {value} {method} {seed}"
    model, seconds = train_here(config, samples, index.image_size, title, stream=stream)
    predictor = network_predictor(model, CPU)
    return {
        "about": provenance(),
        "steps": STEPS,
        "cpu_seconds_per_step": round(seconds, 4),
        "val": score(predictor, index, "val", "chair")["overall"],
        "test": score(predictor, index, "test", "chair")["overall"],
    }


def fewer_objects(samples: SampleTable, count: int) -> SampleTable:
    """Return a table of the first samples."""
    if not count:
        return samples
    places = samples.places[:count]
    sizes = tuple(sum(place[0] == shard for place in places) for shard in dict.fromkeys(shard for shard, _ in places))
    return dataclasses.replace(samples, places=places, keys=samples.keys[:count], shard_sizes=sizes)


def disturbed(config: TrainConfig, samples: SampleTable, change: Change) -> Iterator[Batch]:
    """Yield the batches of a run, in the order in which `train` would have them."""
    plan = samples.plan(config.seed, config.global_batch)
    stream = FewerViews(samples, plan, config.data, config.loader.cache_megabytes)
    stream.views = change.views
    for step in range(config.steps):
        epoch = plan.epoch_of(step)
        chosen = plan.epoch_batches(epoch)[step % plan.steps_per_epoch]
        batch = stream.__getitems__([(epoch, int(sample)) for sample in chosen])
        wrong = change.masks or change.degrees
        yield disturb(batch, change.masks, change.degrees, config.data.despeckle) if wrong else batch


def found(study: str, value: str, method: str) -> list[dict[str, Any]]:
    """Return the results of a value, one per seed."""
    pattern = f"{value.replace(' ', '_')}-{method}-[0-9].json"
    return [json.loads(path.read_text()) for path in sorted((FOLDER / study).glob(pattern))]


def scores(study: str, method: str) -> dict[str, list[float]]:
    """Return the test Chamfer of each value that has results, one per seed."""
    runs = {value: found(study, value, method) for value in STUDIES[study][2]}
    return {value: [run["test"]["chamfer"] for run in each] for value, each in runs.items() if each}


def table(study: str) -> str:
    """Return a study as Markdown."""
    title, methods, changes = STUDIES[study]
    lines = [f"| {title} | " + " | ".join(changes) + " |", "|---|" + "---|" * len(changes)]
    for method in methods:
        values = scores(study, method)
        cells = [f"{np.mean(values[value]):.2f} ({len(values[value])})" if value in values else "" for value in changes]
        lines.append(f"| {METHODS[method][0]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw() -> None:
    """Draw the studies of numbers as curves, that of noise as bars."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2))
    for axis, study in zip(axes, ("views", "points", "grid", "objects"), strict=True):
        title, methods, _ = STUDIES[study]
        for method in methods:
            values = scores(study, method)
            means = [float(np.mean(each)) for each in values.values()]
            axis.plot([int(value) for value in values], means, "o-", label=METHODS[method][0])
        axis.set(xscale="log", xlabel=title, title=study)
        axis.set_xticks([int(value) for value in STUDIES[study][2]], list(STUDIES[study][2]))
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test Chamfer × 100")
    save(figure, "studies.png")
    title, methods, changes = STUDIES["noise"]
    figure, axis = plt.subplots(figsize=(9, 3.2))
    for number, method in enumerate(methods):
        values = scores("noise", method)
        places = [list(changes).index(value) + 0.4 * number for value in values]
        axis.bar(places, [float(np.mean(each)) for each in values.values()], width=0.38, label=METHODS[method][0])
    axis.set_xticks(np.arange(len(changes)) + 0.2, list(changes), fontsize=8)
    axis.set(ylabel="test Chamfer × 100", title=title)
    axis.legend(fontsize=8)
    save(figure, "noise.png")


def save(figure: Any, name: str) -> None:
    """Write a picture."""
    figure.tight_layout()
    figure.savefig(PICTURES / name, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    main()
