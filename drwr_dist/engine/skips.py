"""Samples that can't be used and may be left out (`data.on_bad_sample=skip`): counted per shard, and bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.engine.agreement import count_together
from drwr_dist.errors import TrainingError


def add_skips(skips: Counter[str], batch: Batch, step: int, notice: Callable[[str], None]) -> None:
    """Add the samples of a step that all ranks skipped to `skips`, shard -> samples; called by all ranks together.

    Args:
        skips: counted so far over all ranks, the same on each.
        batch: this rank's part of the step's global batch.
        step: from 0.
        notice: takes a line for each shard that is met for the first time.
    """
    news = count_together(failure.shard for failure in batch.failures)
    for shard in sorted(set(news) - set(skips)):
        notice(f"step {step}: skipping samples of {shard} that can't be used")
    skips.update(news)


def limit_skips(skips: Counter[str], config: TrainConfig, samples: int, step: int) -> None:
    """Raise TrainingError where more than `data.max_skip_fraction` were skipped, of an epoch's samples or all seen."""
    seen = min(step + 1, config.steps) * config.global_batch
    if skips.total() > config.data.max_skip_fraction * max(seen, samples):
        raise TrainingError(
            f"step {step}: {skips.total()} samples were skipped, more than data.max_skip_fraction="
            f"{config.data.max_skip_fraction} allows; run `shards verify data={config.data.path}`"
        )
