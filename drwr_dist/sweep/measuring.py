"""What a trial is compared by: a metric on the validation split, and the seconds that its steps took."""

from __future__ import annotations

from pathlib import Path

from drwr_dist.checkpoint import LOWER_IS_BETTER
from drwr_dist.engine.validation import SPLIT as SPLIT  # val: the test split is for the winners, once
from drwr_dist.monitor import METRICS, VALIDATION, read_rows
from drwr_dist.validation import CHOICES

CHOOSABLE = CHOICES["validation.metric"]


def loss_of(metric: str, value: float) -> float:
    """Return a metric's value as something of which less is better."""
    return value if metric in LOWER_IS_BETTER else -value


def measurements(run: Path, metric: str, global_batch: int) -> list[dict[str, float]]:
    """Return what a run has measured on the validation split so far: {"step", "value", "seconds"} each."""
    rows = read_rows(run / VALIDATION)
    return [
        {"step": row["step"], "value": row[metric], "seconds": training_seconds(run, global_batch, row["step"])}
        for row in rows
    ]


def training_seconds(run: Path, global_batch: int, step: int) -> float:
    """Return the seconds that a run's logged steps up to `step` took, without its starts; exact across restarts."""
    seconds, before = 0.0, 0
    for row in read_rows(run / METRICS):
        if row["step"] <= step and row.get("samples_per_second"):
            seconds += (row["step"] - before) * global_batch / row["samples_per_second"]
            before = row["step"]
    return seconds
