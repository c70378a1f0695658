"""How an object's predictions are scored, and how scores are averaged: what evaluation and validation share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drwr_dist.camera import project
from drwr_dist.data.sample import ObjectSample
from drwr_dist.metrics import PointIndex, earth_mover_distance, silhouette_iou
from drwr_dist.voxels import voxel_iou

# images [V, 3, H, W] of one object, and its category -> points [V, N, 3] (or [1, N, 3] for all views), object frame
Predictor = Callable[[Tensor, str], Tensor]


def object_metrics(
    points: Tensor, sample: ObjectSample, earth_mover: int = 0, shared: bool = False
) -> dict[str, float]:
    """Score the predictions from the first V views of one object.

    Args:
        points: [V, N, 3], the predictions, object frame.
        sample: the object, with its ground truth where it is known.
        earth_mover: points matched for the Earth mover's distance; 0: it is left out.
        shared: the predictions were made from no view, so that none of them is the input view.
    """
    rows: list[dict[str, float]] = []
    truth = None if sample.points is None else PointIndex(torch.from_numpy(sample.points))
    for view, cloud in enumerate(points):
        row = {}
        if len(sample.masks) > 1:  # of an only view, none is held out
            row["silhouette_iou"] = held_out_iou(cloud, sample, None if shared else view)
        if truth is not None:
            row |= cloud_metrics(PointIndex(cloud), truth)
        if sample.occupancy is not None:
            row["voxel_iou"] = voxel_iou(cloud.numpy(), sample.occupancy)
        if truth is not None and earth_mover:
            matched = earth_mover_distance(cloud, torch.from_numpy(truth.coordinates), earth_mover)
            row["earth_mover"] = 100 * matched
        rows.append(row)
    metrics = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    if "chamfer" in metrics:
        metrics["chamfer_best_view"] = min(row["chamfer"] for row in rows)
    return metrics


def cloud_metrics(predicted: PointIndex, target: PointIndex) -> dict[str, float]:
    """Compare one predicted cloud with the ground truth; distances are × 100, their squares × 10,000."""
    forward, backward = target.distances_from(predicted), predicted.distances_from(target)
    row = {
        "chamfer": 100 * float(forward.mean() + backward.mean()),
        "chamfer_predicted_to_target": 100 * float(forward.mean()),
        "chamfer_target_to_predicted": 100 * float(backward.mean()),
        "chamfer_squared": 10_000 * float(np.square(forward).mean() + np.square(backward).mean()),
    }
    for percent in (1, 2):
        precision, recall = _share(forward, percent / 100), _share(backward, percent / 100)
        row[f"f_score_{percent}"] = 2 * precision * recall / max(precision + recall, 1e-12)
    return row


def _share(distances: NDArray[np.float64], threshold: float) -> float:
    return float((distances < threshold).mean())


def held_out_iou(points: Tensor, sample: ObjectSample, input_view: int | None) -> float:
    """Return the mean silhouette IoU of one prediction [N, 3] over all views but the input view."""
    views = [view for view in range(len(sample.masks)) if view != input_view]
    cameras = torch.from_numpy(sample.world_to_camera[views]).float()
    focal = torch.from_numpy(sample.focal_length[views]).float()
    xy, _ = project(points.expand(len(views), -1, -1), cameras, focal)
    masks = torch.from_numpy(sample.masks[views].astype(np.float32) / 255.0)
    return float(np.mean([float(silhouette_iou(xy[row], masks[row])) for row in range(len(views))]))


def summarise(objects: Mapping[str, Mapping[str, float]], views: int) -> dict[str, Any]:
    """Average objects into categories and overall (means over objects)."""
    categories = sorted({key.split("/")[0] for key in objects})
    return {
        "views": views,
        "overall": mean_row(objects.values()),
        "categories": {
            name: mean_row(row for key, row in objects.items() if key.split("/")[0] == name) for name in categories
        },
        "objects": {key: dict(row) for key, row in objects.items()},
    }


def mean_row(rows: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    """Average rows name by name, each over the rows that have it.

    `objects` is the number of rows; where fewer have a score, `objects_with_<score>` is their number.
    """
    rows = list(rows)
    mean: dict[str, Any] = {"objects": len(rows)}
    for name in sorted({name for row in rows for name in row}):
        values = [row[name] for row in rows if name in row]
        mean[name] = float(np.mean(values))
        if len(values) < len(rows):
            mean[f"objects_with_{name}"] = len(values)
    return mean
