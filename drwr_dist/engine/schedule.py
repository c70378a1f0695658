"""Schedules as pure functions of the step, so that resuming needs no scheduler state."""

from __future__ import annotations

import dataclasses
import math

from drwr_dist.config import LossConfig, OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the learning rate of step `step` (from 0) of a run of `steps` steps: linear warm-up, then the schedule."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    if config.schedule == "constant":
        return config.learning_rate * warm
    progress = min(1.0, step / max(1, steps - 1))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.learning_rate * warm * (config.final_fraction + (1.0 - config.final_fraction) * cosine)


def repulsion_weight(config: LossConfig, step: int, steps: int) -> float:
    """Return the repulsion's weight at step `step`: constant, or geometric from the first value to the end value."""
    first, last = config.repulsion_weight, config.repulsion_weight_end
    if last is None or first == 0:
        return first
    return float(first * (last / first) ** min(1.0, step / max(1, steps - 1)))


def loss_at(config: LossConfig, step: int, steps: int) -> LossConfig:
    """Return the loss with every scheduled value as it is at step `step`: the blur falls linearly, kept points rise."""
    progress = min(1.0, step / max(1, steps - 1))
    return dataclasses.replace(
        config,
        repulsion_weight=repulsion_weight(config, step, steps),
        volumetric_sigma=config.volumetric_sigma + progress * (config.volumetric_sigma_end - config.volumetric_sigma),
        keep_points=config.keep_points + progress * (1.0 - config.keep_points),
    )
