"""What a trial is compared by: a metric on the validation split, and the seconds that its steps took."""

from __future__ import annotations

from pathlib import Path

from drwr_dist.checkpoint import LOWER_IS_BETTER
from drwr_dist.data.plan import Plan
from drwr_dist.engine.validation import SPLIT as SPLIT  # val: the test split is for the winners, once
from drwr_dist.monitor import METRICS, VALIDATION, read_rows
from drwr_dist.validation import CHOICES

CHOOSABLE = CHOICES["validation.metric"]


def loss_of(metric: str, value: float) -> float:
    """Return a metric's value as something of which less is better."""
    return value if metric in LOWER_IS_BETTER else -value


def measurements(run: Path, metric: str, plan: Plan) -> list[dict[str, float]]:
    """Return what a run has measured on the validation split so far: {"step", "value", "seconds"} each.

    Args:
        run: its folder.
        metric: that trials are compared by.
        plan: which samples its steps take.
    """
    rows = read_rows(run / VALIDATION)
    return [
        {"step": row["step"], "value": row[metric], "seconds": training_seconds(run, plan, row["step"])} for row in rows
    ]


def training_seconds(run: Path, plan: Plan, step: int) -> float:
    """Return the seconds that a run's logged steps up to `step` took, without its starts; exact across restarts.

    A row says how many samples a second were trained since the row before, or since a start after it: the seconds of
    all the steps in between follow from how many samples the plan has for them.
    """
    seconds, before = 0.0, 0
    for row in read_rows(run / METRICS):
        if row["step"] <= step and row.get("samples_per_second"):
            samples = samples_until(plan, row["step"]) - samples_until(plan, before)
            seconds += samples / row["samples_per_second"]
            before = row["step"]
    return seconds


def samples_until(plan: Plan, step: int) -> int:
    """Return how many samples the first `step` steps take; the last step of an epoch may take fewer than the others."""
    epochs, steps = divmod(step, plan.steps_per_epoch)
    return epochs * plan.samples + steps * plan.global_batch
