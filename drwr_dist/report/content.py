"""What a report says: the numbers of an evaluation, its objects with their clouds and pictures, and the curves."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drwr_dist.data.batch import as_tensor
from drwr_dist.data.sample import ObjectSample, composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.metrics import PointIndex
from drwr_dist.monitor import METRICS, TAGS, VALIDATION, read_rows
from drwr_dist.report import packing
from drwr_dist.report.page import write_page
from drwr_dist.report.selection import by_error, error_metric, shown_objects, shown_views
from drwr_dist.results import DEFINITIONS
from drwr_dist.run import TrainedRun, load_result
from drwr_dist.scores import Predictor
from drwr_dist.version import __version__

TRUTH_POINTS = 2000  # of a ground truth; distances to it are taken to all of it
PICTURES = 12  # views of an object whose image and silhouette are shown, at most
THUMBNAIL = 48  # pixels
CURVE_ROWS = 600  # points of a learning curve


def write_report(
    run: TrainedRun, folder: Path, split: str, table: SampleTable, block: dict[str, Any], predictor: Predictor
) -> Path:
    """Write report.html of an evaluation and return its path.

    Args:
        run: the evaluated run.
        folder: where the report goes, and where result.json is.
        split: name of the evaluated split.
        table: its objects.
        block: their results.
        predictor: what was evaluated; it predicts the shown objects once more.
    """
    shown = shown_objects(block["objects"])
    views = shown_views(len(shown), table.index.views, run.config.model.points)
    objects, clouds = [], {}
    for key in shown:
        sample = table.read(table.keys.index(key), with_points=True)
        facts, clouds[key] = describe(sample, predictor, views, run.config.data.background)
        objects.append(facts)
    head = {
        "run": run.config.name,
        "split": split,
        "step": run.step,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "data": table.index.name,
        "points": run.config.model.points,
        "seed": run.config.seed,
    }
    content = {
        "head": head,
        "definitions": DEFINITIONS,
        "splits": summaries(load_result(folder), split, block),
        "rows": block["objects"],
        "order": by_error(block["objects"]),
        "error": error_metric(block["objects"]),
        "objects": objects,
        "distance_scale": packing.DISTANCE_SCALE,
        "curves": curves(run.path),
        "poses": block.get("poses"),
    }
    return write_page(folder, f"{run.config.name}: {split}", content, clouds)


def describe(
    sample: ObjectSample, predictor: Predictor, views: int, background: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a report says of one object, and the texts that are decoded only when it is looked at."""
    views = min(views, len(sample.images), PICTURES)
    images = composite(sample.images, sample.masks, background)
    points = predictor(torch.stack([as_tensor(image) for image in images[:views]]), sample.key.split("/")[0])
    points = points.expand(views, -1, -1)
    clouds, distances, per_view = [cloud.numpy() for cloud in points], [], []
    if sample.points is not None:
        truth, predicted = PointIndex(torch.from_numpy(sample.points)), [PointIndex(cloud) for cloud in points]
        thinned = np.random.default_rng(0).permutation(len(sample.points))[:TRUTH_POINTS]
        forward = [truth.distances_from(cloud) for cloud in predicted]
        backward = [cloud.distances_from(truth) for cloud in predicted]
        per_view = [100 * float(f.mean() + b.mean()) for f, b in zip(forward, backward, strict=True)]
        clouds.append(sample.points[thinned])
        distances = [*forward, *(row[thinned] for row in backward)]
    packed, scale = packing.pack_clouds(clouds, distances)
    pictured = slice(0, PICTURES)
    facts = {
        "key": sample.key,
        "views": views,
        "points": points.shape[1],
        "truth": len(clouds[-1]) if per_view else 0,
        "scale": scale,
        "chamfer": [round(value, 4) for value in per_view],
        "size": images.shape[1],
        "cameras": [[round(float(x), 6) for x in camera[:3].ravel()] for camera in sample.world_to_camera[pictured]],
        "focal": [float(focal) for focal in sample.focal_length[pictured]],
        "thumbnail": packing.picture(images[0], THUMBNAIL),
    }
    texts = {
        "points": packed,
        "images": packing.strip(images[pictured]),
        "masks": packing.strip(sample.masks[pictured]),
    }
    return facts, texts


def summaries(result: Mapping[str, Any], split: str, block: dict[str, Any]) -> dict[str, Any]:
    """Return per split what its table shows: means per category and overall, of the references too."""
    splits = {**result.get("splits", {}), split: block}
    return {
        name: {
            "views": found["views"],
            "overall": found["overall"],
            "categories": found["categories"],
            "references": found.get("references", {}),
        }
        for name, found in splits.items()
    }


def curves(run: Path) -> list[dict[str, Any]]:
    """Return the learning curves as groups: {"title", "steps", "series": {name: values}}; none where none are known."""
    training, validation = read_rows(run / METRICS), read_rows(run / VALIDATION)
    found = [curve("losses", training, [key for key, tag in TAGS.items() if tag.startswith("loss/")])]
    # Each of the others has a scale of its own; one that was always 0 says nothing.
    others = [key for key, tag in TAGS.items() if not tag.startswith("loss/")]
    found += [curve(key.replace("_", " "), training, [key]) for key in others if any(row.get(key) for row in training)]
    names = [name for name in DEFINITIONS if any(name in row for row in validation)]
    chamfer = [name for name in names if name.startswith("chamfer")]
    squared = [name for name in chamfer if name.endswith("squared")]  # on a scale of its own
    found += [curve("validation: Chamfer × 100", validation, [name for name in chamfer if name not in squared])]
    found += [curve("validation: Chamfer, squared × 10,000", validation, squared)]
    found += [curve("validation: F-score and IoU", validation, [name for name in names if name not in chamfer])]
    return [group for group in found if group["series"]]


def curve(title: str, rows: list[dict[str, Any]], names: list[str]) -> dict[str, Any]:
    """Return the columns `names` of the rows, thinned evenly, the last row always there."""
    kept = rows[:: -(-len(rows) // CURVE_ROWS) or 1]
    kept += rows[-1:] if rows and kept[-1] is not rows[-1] else []
    series = {name: [_number(row.get(name)) for row in kept] for name in names if any(name in row for row in rows)}
    return {"title": title, "steps": [row["step"] for row in kept], "series": series}


def _number(value: Any) -> float | None:
    usable = isinstance(value, (int, float)) and np.isfinite(value)
    return float(f"{value:.5g}") if usable else None
