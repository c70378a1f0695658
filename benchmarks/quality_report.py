"""What benchmarks/quality.py shows: references that need no training, tables, learning curves and rows of shapes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from measuring import ROOT
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from drwr_dist.data.batch import as_tensor
from drwr_dist.data.index import DatasetIndex, load_index
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.gallery import SIDE_VIEW, TILE, draw_points
from drwr_dist.metrics import chamfer_distance

PICTURES = ROOT / "docs" / "images"
SHAPES = 4  # rows of shapes
CEILING = 15.0  # curves above leave the picture


def oracles(index: DatasetIndex, table: SampleTable, points: int, categories: list[str]) -> dict[str, Any]:
    """Score a subset of the ground truth itself, and the training shape that an oracle finds nearest."""
    training = _clouds(SampleTable.select(index, "train", categories), points)
    rows: dict[str, dict[str, list[float]]] = {"ground truth, a subset": {}, "nearest training shape, by an oracle": {}}
    for key, cloud in _clouds(table, None).items():
        category = key.split("/")[0]
        subset = _subset(cloud, points)
        candidates = [shape for other, shape in training.items() if other.split("/")[0] == category]
        scores = {
            "ground truth, a subset": _chamfer(subset, cloud),
            "nearest training shape, by an oracle": min(_chamfer(shape, cloud) for shape in candidates),
        }
        for name, value in scores.items():
            for column in ("overall", category):
                rows[name].setdefault(column, []).append(value)
    return {name: {column: _mean(values) for column, values in columns.items()} for name, columns in rows.items()}


def _mean(values: list[float]) -> dict[str, float]:
    return {"objects": len(values), "chamfer": round(float(np.mean(values)), 3)}


def _clouds(table: SampleTable, points: int | None) -> dict[str, NDArray[np.float32]]:
    clouds = {}
    for number, key in enumerate(table.keys):
        cloud = table.read(number, views=[0], with_points=True).points
        if cloud is not None:
            clouds[key] = np.asarray(cloud, np.float32) if points is None else _subset(cloud, points)
    return clouds


def _subset(cloud: NDArray[Any], points: int) -> NDArray[np.float32]:
    chosen = np.random.default_rng(0).choice(len(cloud), points, replace=len(cloud) < points)
    return np.asarray(cloud[chosen], np.float32)


def _chamfer(predicted: NDArray[np.float32], target: NDArray[np.float32]) -> float:
    there, back = chamfer_distance(torch.from_numpy(predicted), torch.from_numpy(target))
    return 100 * float(there + back)


def load(results: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return dataset -> method -> its runs."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(results.glob("*/*-[0-9].json")):
        found.setdefault(path.parent.name, {}).setdefault(path.stem[:-2], []).append(json.loads(path.read_text()))
    return found


def tables(results: Path, titles: dict[str, str], equal_time: str) -> str:
    """Return Markdown: test Chamfer of each method on each dataset, mean ± standard deviation over seeds."""
    found = load(results)
    datasets = [name for name in ("airplane", "car", "chair", "all") if name in found]
    costs = json.loads((results / "costs.json").read_text())["ratio"] if (results / "costs.json").exists() else {}
    lines = ["| | cost of a step | " + " | ".join(datasets) + " |", "|---|---|" + "---|" * len(datasets)]
    for name in json.loads((results / datasets[0] / "references.json").read_text())["test"] if datasets else ():
        rows = [json.loads((results / d / "references.json").read_text())["test"][name] for d in datasets]
        lines.append(f"| {name} | | " + " | ".join(f"{row['overall']['chamfer']:.2f}" for row in rows) + " |")
    for name, title in titles.items():
        if any(name in found[dataset] for dataset in datasets):
            method, timed = name.removesuffix(equal_time), name.endswith(equal_time)
            cells = [_cell(found[dataset].get(name, [])) for dataset in datasets]
            cost = f"{costs[method]:.2f} ×" if method in costs and not timed else ""
            lines.append(f"| {title}{', equal time' if timed else ''} | {cost} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(runs: list[dict[str, Any]]) -> str:
    values = [run["test"]["overall"]["chamfer"] for run in runs]
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{spread} ({len(values)})"


def curves(results: Path, titles: dict[str, str], equal_time: str) -> None:
    """Draw docs/images/quality_curves.png: val Chamfer over steps and over CPU time."""
    found = load(results)
    datasets = [name for name in ("airplane", "car", "chair", "all") if name in found]
    if not datasets:
        return
    ratios = json.loads((results / "costs.json").read_text())["ratio"]
    figure, axes = plt.subplots(2, len(datasets), figsize=(4 * len(datasets), 6), squeeze=False, sharey="col")
    for column, dataset in enumerate(datasets):
        highest = 0.0
        for number, (name, title) in enumerate(titles.items()):
            runs = found[dataset].get(name)
            if not runs or name not in ratios:
                continue
            steps = [row["step"] for row in runs[0]["curve"]]
            mean = np.mean([[row["chamfer"] for row in run["curve"]] for run in runs], axis=0)
            style = {"label": title, "color": f"C{number}"}
            axes[0][column].plot(steps, mean, **style)
            axes[1][column].plot(np.multiply(steps, ratios[name]), mean, **style)
            highest = max([highest, *(value for value in mean if value < CEILING)])
        for row, what in enumerate(("steps", "time, in steps of ours")):
            axes[row][column].set(title=dataset if row == 0 else "", xlabel=what, ylim=(0, 1.05 * highest))
            axes[row][column].grid(alpha=0.3)
        axes[1][column].set_xlim(0, axes[0][column].get_xlim()[1])
    axes[0][0].set_ylabel("val Chamfer × 100")
    axes[1][0].set_ylabel("val Chamfer × 100")
    named = {line.get_label(): line for axis in axes[0] for line in axis.get_lines()}
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.legend(named.values(), named, loc="lower center", ncols=len(named), fontsize=8, frameon=False)
    figure.savefig(PICTURES / "quality_curves.png", dpi=80)
    plt.close(figure)


def draw_shapes(networks: dict[str, Any]) -> None:
    """Draw docs/images/quality_shapes.png: test objects, what each network (…, seconds, config) makes of view 0."""
    config = next(iter(networks.values()))[2]
    table = SampleTable.select(load_index(config.data.path), "test", config.data.categories)
    titles = ["input", *networks, "ground truth"]
    sheet = Image.new("RGB", (TILE * len(titles), 2 * TILE * SHAPES + 20), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((column * TILE + 6, 4), title, fill="black")
    for row, number in enumerate(range(0, len(table.keys), max(1, len(table.keys) // SHAPES))[:SHAPES]):
        sample = table.read(number, with_points=True)
        image = composite(sample.images, sample.masks, config.data.background)[0]
        clouds = []
        for model, _, _ in networks.values():
            with torch.no_grad():
                clouds.append(model(as_tensor(image)[None])[0].numpy())
        camera = torch.from_numpy(np.asarray(sample.world_to_camera[0]))
        top = 20 + 2 * TILE * row
        sheet.paste(Image.fromarray(image).resize((TILE, TILE)), (0, top))
        for column, cloud in enumerate([*clouds, sample.points], start=1):
            for line, view in enumerate((camera, SIDE_VIEW)):
                tile = Image.fromarray(draw_points(np.asarray(cloud), view))
                sheet.paste(tile, (column * TILE, top + line * TILE))
    sheet.save(PICTURES / "quality_shapes.png")
