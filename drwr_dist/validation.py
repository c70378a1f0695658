"""Checks of a training configuration that need no data: impossible values and combinations.

Every message names the key, what arrived and what to do. Types and unknown keys are checked before, by
`drwr_dist.cli`; what needs the dataset's index is checked by `drwr_dist.train`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection
from typing import Any

from drwr_dist.config import SPLITS, TrainConfig
from drwr_dist.errors import UsageError

CHOICES = {
    "loss.semantics": ("default", "released"),
    "loss.method": ("auto", "plain", "fourier"),
    "model.architecture": ("released",),
    "pose.mode": ("known", "predict", "random"),
    "pose.proposals": ("search", "network"),
    "data.view_order": ("random", "fixed"),
    "data.on_bad_sample": ("fail", "skip"),
    "optimizer.schedule": ("constant", "cosine"),
    "communication.compression": ("none", "bfloat16"),
    "validation.metric": ("chamfer", "f_score_1", "f_score_2", "silhouette_iou"),
    "evaluation.checkpoint": ("last", "best"),
    "compile": ("none", "inductor", "cuda_graphs"),
    "precision": ("auto", "float32", "bfloat16", "float64"),
}

# key -> (test, what the value must be); infinity never passes
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "steps": (lambda v: v >= 0, "0 or more"),
    "global_batch": (lambda v: v >= 1, "at least 1"),
    "log_every": (lambda v: v >= 1, "at least 1"),
    "seed": (lambda v: 0 <= v < 2**32, "between 0 and 2³² - 1"),
    "data.split": (lambda v: v in SPLITS, f"one of {', '.join(SPLITS)}"),
    "evaluation.split": (lambda v: not v or v in SPLITS, f"one of {', '.join(SPLITS)}, or null"),
    "data.background": (lambda v: 0 <= v <= 1, "between 0 (black) and 1 (white)"),
    "data.supervision_views": (lambda v: v >= 1, "at least 1"),
    "data.despeckle": (lambda v: v >= 0, "0 (masks as they are) or more"),
    "data.max_skip_fraction": (lambda v: 0 <= v <= 1, "between 0 and 1"),
    "loader.workers": (lambda v: re.fullmatch(r"auto|\d+", str(v)) is not None, "auto, or a number of processes"),
    "loader.prefetch": (lambda v: v >= 1, "at least 1"),
    "loader.cache_megabytes": (lambda v: v >= 0, "0 (no cache) or more"),
    "model.points": (lambda v: v >= 1, "at least 1"),
    "model.channels": (lambda v: v >= 1, "at least 1"),
    "model.hidden": (lambda v: v >= 1, "at least 1"),
    "model.decoder_std": (lambda v: v > 0, "above 0"),
    "loss.grid": (lambda v: v >= 2, "at least 2"),
    "loss.unary_weight": (lambda v: v >= 0, "0 or more"),
    "loss.repulsion_weight": (lambda v: v >= 0, "0 or more"),
    "loss.repulsion_weight_end": (lambda v: v is None or v > 0, "above 0, or null for a constant weight"),
    "loss.theta": (lambda v: v > 0, "above 0"),
    "loss.coverage_weight": (lambda v: v >= 0, "0 (no coverage term) or more"),
    "loss.coverage_places": (lambda v: v >= 1, "at least 1"),
    "loss.coverage_neighbours": (lambda v: v >= 1, "at least 1"),
    "loss.crowding_weight": (lambda v: v >= 0, "0 (no crowding term) or more"),
    "loss.crowding_radius": (lambda v: v > 0, "above 0"),
    "loss.unary_refinement": (lambda v: v >= 1, "at least 1"),
    "loss.ring": (lambda v: v >= 1, "at least 1"),
    "loss.volumetric_weight": (lambda v: v >= 0, "0 or more"),
    "loss.volumetric_sigma": (lambda v: v > 0, "above 0"),
    "loss.volumetric_sigma_end": (lambda v: v > 0, "above 0"),
    "loss.volumetric_kernel": (lambda v: v >= 1 and v % 2 == 1, "odd and at least 1"),
    "loss.keep_points": (lambda v: 0 < v <= 1, "above 0 and at most 1"),
    "loss.sum_weight": (lambda v: v >= 0, "0 or more"),
    "loss.entropy_weight": (lambda v: v >= 0, "0 or more"),
    "loss.chamfer_2d_weight": (lambda v: v >= 0, "0 or more"),
    "pose.candidates": (lambda v: v >= 1, "at least 1"),
    "pose.student_weight": (lambda v: v > 0, "above 0"),
    "pose.azimuths": (lambda v: v >= 4, "at least 4"),
    "pose.elevations": (lambda v: v >= 1, "at least 1"),
    "pose.elevation": (
        lambda v: len(v) == 2 and -90 <= v[0] <= v[1] <= 90,
        "[lowest,highest] in degrees, between -90 and 90",
    ),
    "pose.softness": (lambda v: v > 0, "above 0"),
    "pose.softness_end": (lambda v: v > 0, "above 0"),
    "loss.chamfer_2d_draws": (lambda v: v >= 1, "at least 1"),
    "optimizer.learning_rate": (lambda v: v > 0, "above 0"),
    "optimizer.warmup_steps": (lambda v: v >= 0, "0 or more"),
    "optimizer.final_fraction": (lambda v: 0 <= v <= 1, "between 0 and 1"),
    "optimizer.weight_decay": (lambda v: v >= 0, "0 or more"),
    "optimizer.gradient_clip": (lambda v: v >= 0, "0 (no clipping) or more"),
    "communication.accumulate": (lambda v: v >= 1, "at least 1"),
    "communication.average_every": (lambda v: v >= 1, "at least 1"),
    "checkpoint.every": (lambda v: v >= 1, "at least 1"),
    "checkpoint.keep": (lambda v: v >= 1, "at least 1"),
    "validation.every": (lambda v: v >= 0, "0 (no validation) or more"),
    "validation.views": (lambda v: v >= 1, "at least 1"),
    "monitor.pictures_every": (lambda v: v >= 0, "0 (no pictures) or more"),
    "cluster.cpus_per_worker": (lambda v: v > 0, "above 0"),
    "cluster.gpus_per_worker": (lambda v: v == -1 or v >= 0, "-1 (automatic), 0 or more"),
    "cluster.max_failures": (lambda v: v >= 0, "0 or more"),
    "cluster.start_timeout": (lambda v: v >= 1, "at least 1 second"),
    "cluster.timeout": (lambda v: v >= 1, "at least 1 second"),
}


def workers_range(workers: int | list[int]) -> tuple[int, int]:
    """Return (fewest, most) workers of the key `workers`: a number n is (n, n).

    Raises:
        UsageError: `workers` is neither a whole number ≥ 1 nor [min, max] with 1 ≤ min ≤ max.
    """
    pair = [workers, workers] if isinstance(workers, int) else workers
    numbers = isinstance(pair, (list, tuple)) and all(type(n) is int for n in pair)
    if not numbers or len(pair) != 2 or not 1 <= pair[0] <= pair[1]:
        raise UsageError(f"workers={workers}: give a whole number of at least 1, or [min,max] for elastic training")
    return pair[0], pair[1]


def check_values(options: Any, groups: Collection[str] | None = None) -> None:
    """Raise UsageError for the first value that can't be, whatever the others are.

    Args:
        options: with the keys of `TrainConfig`, or some groups of them.
        groups: the groups, and keys in none, to look at; None: all.
    """
    for key, choices in CHOICES.items():
        if groups is None or key.split(".")[0] in groups:
            value = _value(options, key)
            if value not in choices:
                raise UsageError(f"{key}={value}: choose one of {', '.join(choices)}")
    for key, (passes, requirement) in RANGES.items():
        if groups is None or key.split(".")[0] in groups:
            value = _value(options, key)
            if not passes(value) or value == math.inf:
                raise UsageError(f"{key}={value}: must be {requirement}")


def validate(config: TrainConfig) -> None:
    """Raise UsageError for the first value or combination in `config` that can't work."""
    check_values(config)
    known = config.loss.terms()
    if not any(getattr(config.loss, f"{name}_weight") for name in known):
        raise UsageError(
            f"loss.unary_weight={config.loss.unary_weight}: every weight of the loss is 0 under loss.semantics="
            f"{config.loss.semantics}; set one of {', '.join(f'loss.{name}_weight' for name in known)}"
        )
    if config.model.scale_head and not config.loss.volumetric_weight:
        raise UsageError(
            "model.scale_head=true: nothing would train it, the volumetric loss alone reads it; set "
            "loss.volumetric_weight above 0, or model.scale_head=false"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.name):
        raise UsageError(f"name={config.name!r}: use letters, digits, dots, dashes and underscores (it names a folder)")
    if config.steps == 0 and config.init is None:
        raise UsageError("steps=0: must be at least 1, unless init=… names weights to evaluate as they are")
    if config.validation.every and config.data.split == "val":
        raise UsageError(
            "validation.every: data.split=val is what training reads; train on another split, or set validation.every=0"
        )
    if config.evaluation.checkpoint == "best" and not config.validation.every:
        raise UsageError("evaluation.checkpoint=best: set validation.every=STEPS, without validation there is no best")
    if config.compile == "cuda_graphs" and config.cluster.gpus_per_worker == 0:
        raise UsageError(
            "compile=cuda_graphs: cluster.gpus_per_worker=0 leaves workers without a GPU; set compile=inductor or none"
        )
    _validate_communication(config)
    _, most = workers_range(config.workers)
    share = config.cluster.gpus_per_worker
    if most > 1 and 0 < share < 1:
        raise UsageError(
            f"cluster.gpus_per_worker={share}: NCCL lets no two workers share a GPU; give 1 or more, 0 for CPUs, "
            "or workers=1"
        )
    if most > config.global_batch:
        raise UsageError(
            f"workers={config.workers} is more than global_batch={config.global_batch}: a worker would have no "
            f"sample; lower workers to at most {config.global_batch}, or raise global_batch"
        )


def _validate_communication(config: TrainConfig) -> None:
    settings, period = config.communication, config.communication.average_every
    searched = config.pose.mode == "predict" and config.pose.proposals == "search"
    if settings.accumulate > 1 and searched:
        raise UsageError(
            f"communication.accumulate={settings.accumulate}: the search for cameras (pose.proposals=search) balances "
            "them over the whole step at once; set communication.accumulate=1"
        )
    if settings.accumulate > 1 and settings.static_graph:
        raise UsageError(
            "communication.static_graph=true: PyTorch's DDP can't add gradients up over several passes then; set "
            "communication.accumulate=1, or leave static_graph out"
        )
    if period == 1:
        return
    for key in ("compression", "static_graph"):
        if getattr(settings, key) not in ("none", False):
            raise UsageError(
                f"communication.{key}={getattr(settings, key)}: no gradients are exchanged with "
                f"communication.average_every={period}; leave one of them out"
            )
    for key in ("checkpoint.every", "validation.every"):
        every = _value(config, key)
        if every % period and every < config.steps:
            raise UsageError(
                f"{key}={every}: must be a multiple of communication.average_every={period}, workers differ in "
                f"between; set {key}={every + period - every % period}"
            )


def _value(config: TrainConfig, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
