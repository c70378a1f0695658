"""Scores on the validation split while training goes on: each rank scores a part of its objects.

Nothing here draws a random number or touches a gradient, so the loss curve is the same with and without it. The
scores of all objects are brought together and averaged in one order: they do not depend on the number of workers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist

from drwr_dist.data.batch import as_tensor
from drwr_dist.data.plan import rank_slice
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.engine.agreement import fail_together
from drwr_dist.errors import DataError
from drwr_dist.scores import Predictor, mean_row, object_metrics

SPLIT = "val"  # never the test split: what chooses a checkpoint must not be what judges it

Row = dict[str, float]


def validate(
    predict: Predictor, table: SampleTable, views: int, background: float, skip: bool, rank: int, world_size: int
) -> Row:
    """Score the validation split; all ranks must call this and get the same row.

    Args:
        predict: the network as it is.
        table: the validation split.
        views: input views per object: its first ones.
        background: grey level behind the objects.
        skip: leave out damaged samples, instead of failing.
        rank: of this worker.
        world_size: number of workers.

    Returns:
        Means over objects of what `drwr_dist.scores.object_metrics` gives, `objects` and, if any, `skipped`.

    Raises:
        TrainingError: on all ranks, where a sample is damaged on one of them, or its prediction is not finite.
    """
    rows: dict[str, Row] = {}
    problem, skipped = None, 0
    for number in rank_slice(range(len(table.keys)), rank, world_size):
        try:
            rows[table.keys[number]] = _score(predict, table, int(number), views, background)
        except DataError as error:
            skipped += 1
            problem = problem or str(error)
    fail_together(None if skip else problem)
    parts: list[tuple[dict[str, Row], int]] = [(rows, skipped)]
    if world_size > 1:
        parts *= world_size
        dist.all_gather_object(parts, parts[0])
    everything = {key: row for part, _ in parts for key, row in part.items()}
    if not everything:
        fail_together(f"validation: every sample is damaged: {problem}" if problem else None)
    total = sum(count for _, count in parts)
    mean: Row = mean_row(everything[key] for key in sorted(everything))
    return mean | ({"skipped": total} if total else {})


def _score(predict: Predictor, table: SampleTable, number: int, views: int, background: float) -> Row:
    sample = table.read(number, with_points=True)
    shown = slice(0, views)
    images = composite(sample.images[shown], sample.masks[shown], background)
    points = predict(torch.stack([as_tensor(image) for image in images]), sample.key.split("/")[0])
    if not torch.isfinite(points).all():
        raise DataError(f"validation: {sample.key}: the network's prediction is not finite")
    row = object_metrics(points, sample)
    row.pop("chamfer_best_view", None)  # of the views shown here it says nothing
    return row
