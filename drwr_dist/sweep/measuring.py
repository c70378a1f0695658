"""What a trial is compared by: a metric on the validation split, and the seconds that its steps took."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from drwr_dist.errors import TrainingError
from drwr_dist.evaluate import EvaluateOptions, evaluate_run
from drwr_dist.monitor import METRICS, read_rows
from drwr_dist.run import load_run

SPLIT = "val"  # the test split is for the winners, once
BETTER = {"chamfer": "lower", "f_score_1": "higher", "f_score_2": "higher", "silhouette_iou": "higher"}


def measure_on_validation(run: Path, metric: str, categories: list[str], console: Console) -> float:
    """Return the metric of a run's newest checkpoint, mean over the validation objects.

    Raises:
        TrainingError: it is not finite.
        DataError: a prediction is not finite, or a sample is damaged.
    """
    options = EvaluateOptions(str(run), split=SPLIT, categories=categories, predictions=False, references=False)
    value = float(evaluate_run(load_run(run), options, console)["overall"].get(metric, math.nan))
    if not math.isfinite(value):
        raise TrainingError(f"{metric} on {SPLIT} is {value}")
    return value


def loss_of(metric: str, value: float) -> float:
    """Return a metric's value as something of which less is better."""
    return value if BETTER[metric] == "lower" else -value


def training_seconds(run: Path, global_batch: int) -> float:
    """Return the seconds that a run's logged steps took, without starting and evaluating; exact across restarts."""
    seconds, before = 0.0, 0
    for row in read_rows(run / METRICS):
        if row.get("samples_per_second"):
            seconds += (row["step"] - before) * global_batch / row["samples_per_second"]
            before = row["step"]
    return seconds
