"""Checks of a sweep before anything starts; every message names the key and the fix."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from drwr_dist.config import SweepConfig, TuneConfig
from drwr_dist.data.index import DatasetIndex
from drwr_dist.data.stream import SampleTable
from drwr_dist.errors import DataError, UsageError
from drwr_dist.sweep.measuring import CHOOSABLE, SPLIT
from drwr_dist.sweep.population import CHANGEABLE, UNCHANGEABLE
from drwr_dist.sweep.search import import_optuna
from drwr_dist.sweep.space import Parameter, apply, grid, parse_space
from drwr_dist.training import check_against_data
from drwr_dist.validation import validate

CHOICES = {
    "search": ("grid", "random", "optuna"),
    "scheduler": ("none", "asha", "halving", "pbt"),
    "metric": CHOOSABLE,
}
RANGES: dict[str, tuple[Callable[[SweepConfig], bool], str]] = {
    "candidates": (lambda s: s.candidates >= 1, "at least 1"),
    "generation": (lambda s: s.generation >= 1, "at least 1"),
    "concurrent": (lambda s: s.concurrent >= 0, "0 (as many as the cluster holds) or more"),
    "driver_cpus": (lambda s: 0 <= s.driver_cpus <= 1, "between 0 and 1"),
    "max_failures": (lambda s: s.max_failures >= 0, "0 or more"),
    "keep": (lambda s: s.keep >= 1, "at least 1"),
    "asha.first_rung": (lambda s: s.asha.first_rung >= 1, "at least 1"),
    "asha.reduction": (lambda s: s.asha.reduction >= 2, "at least 2"),
    "pbt.interval": (lambda s: s.pbt.interval >= 1, "at least 1"),
    "pbt.quantile": (lambda s: 0 < s.pbt.quantile <= 0.5, "above 0 and at most 0.5"),
    "pbt.factor": (lambda s: s.pbt.factor > 1, "above 1"),
}


def check_sweep(config: TuneConfig) -> dict[str, Parameter]:
    """Check what needs no data; return the parsed search space.

    Raises:
        UsageError: names the key and the fix.
    """
    sweep = config.sweep
    validate(config)
    if "://" in config.storage:
        raise UsageError(
            f"storage={config.storage}: a sweep needs a folder, shared by the nodes where there are several"
        )
    for key, choices in CHOICES.items():
        if getattr(sweep, key) not in choices:
            raise UsageError(f"sweep.{key}={getattr(sweep, key)}: choose one of {', '.join(choices)}")
    for key, (passes, requirement) in RANGES.items():
        if not passes(sweep):
            raise UsageError(f"sweep.{key}={_value(sweep, key)}: must be {requirement}")
    if not config.steps:
        raise UsageError("steps=0: must be at least 1, a sweep compares what training makes of its configurations")
    space = parse_space(sweep.space)
    for parameter in space.values():
        for value in parameter.extremes():
            _check_value(config, parameter.key, value)
    _check_search(sweep, space)
    _check_scheduler(config, space)
    if sweep.report and importlib.util.find_spec("plotly") is None:
        raise UsageError(
            "sweep.report=true: Plotly is not installed; pip install 'drwr-dist[tune]', or sweep.report=false"
        )
    return space


def _value(sweep: SweepConfig, key: str) -> Any:
    value: Any = sweep
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _check_value(config: TuneConfig, key: str, value: Any) -> None:
    try:
        validate(apply(config, {key: value}))
    except UsageError as error:
        raise UsageError(f"sweep.space: {key}: {error}") from error


def _check_search(sweep: SweepConfig, space: dict[str, Parameter]) -> None:
    if sweep.search == "grid":
        grid(space)  # has an end
    if sweep.search == "optuna":
        import_optuna()
    if sweep.objectives not in (["quality"], ["quality", "seconds"]):
        raise UsageError(f"sweep.objectives={sweep.objectives}: give [quality] or [quality,seconds]")
    if len(sweep.objectives) > 1 and sweep.search != "optuna":
        raise UsageError(
            f"sweep.objectives={sweep.objectives}: sweep.search={sweep.search} does not learn from results; "
            "take sweep.search=optuna, or sweep.objectives=[quality]"
        )


def _check_scheduler(config: TuneConfig, space: dict[str, Parameter]) -> None:
    sweep = config.sweep
    if sweep.scheduler == "none":
        return
    if "steps" in space:
        raise UsageError(
            f"sweep.space: steps: sweep.scheduler={sweep.scheduler} compares trials at the same steps; take steps out "
            "of the space, or sweep.scheduler=none"
        )
    key = "pbt.interval" if sweep.scheduler == "pbt" else "asha.first_rung"
    every = _value(sweep, key)
    if every % config.communication.average_every:
        raise UsageError(
            f"sweep.{key}={every}: must be a multiple of communication.average_every="
            f"{config.communication.average_every}, the workers of a trial differ in between"
        )
    if sweep.scheduler in ("asha", "halving"):
        if sweep.asha.first_rung >= config.steps:
            raise UsageError(
                f"sweep.asha.first_rung={sweep.asha.first_rung}: not before the last step, so nothing would be ended "
                f"early; lower it below steps={config.steps}, or sweep.scheduler=none"
            )
        if len(sweep.objectives) > 1:
            raise UsageError(
                f"sweep.objectives={sweep.objectives}: trials ended early have no comparable time; take "
                "sweep.scheduler=none, or sweep.objectives=[quality]"
            )
        return
    _check_population(config, space)


def _check_population(config: TuneConfig, space: dict[str, Parameter]) -> None:
    sweep = config.sweep
    if sweep.search != "random":
        raise UsageError(
            f"sweep.scheduler=pbt: it changes values on the way, sweep.search={sweep.search} would fix them; take "
            "sweep.search=random, or another scheduler"
        )
    if sweep.candidates < 4:
        raise UsageError(f"sweep.candidates={sweep.candidates}: a population needs at least 4 for sweep.scheduler=pbt")
    if sweep.pbt.interval >= config.steps:
        raise UsageError(
            f"sweep.pbt.interval={sweep.pbt.interval}: not before the last step, so nothing would be exchanged; lower "
            f"it below steps={config.steps}"
        )
    for key in space:
        if not key.startswith(CHANGEABLE) or key in UNCHANGEABLE:
            raise UsageError(
                f"sweep.space: {key}: can't change while a run goes on, as sweep.scheduler=pbt does; vary keys of "
                f"{' and '.join(CHANGEABLE)}, or take another scheduler"
            )


def check_sweep_data(config: TuneConfig, space: dict[str, Parameter], index: DatasetIndex) -> list[str]:
    """Check the sweep against the dataset; return the categories.

    Raises:
        UsageError: a category without objects to train on or to select by, a value that the images don't allow,
            a metric that the data doesn't give.
    """
    categories = config.sweep.categories or config.data.categories or sorted(index.categories)
    if repeated := sorted({name for name in categories if categories.count(name) > 1}):
        raise UsageError(f"sweep.categories: {repeated[0]} stands there twice; remove one")
    for name in categories:
        if name not in index.categories:
            known = ", ".join(sorted(index.categories))
            raise UsageError(f"sweep.categories: {index.root} has no category {name}; it has {known}")
        for split in (config.data.split, SPLIT, config.sweep.test_split):
            if split and not index.select(split, [name]):
                raise UsageError(
                    f"sweep.categories: {name} has no objects in the split {split} of {index.root}; list only "
                    "categories that have" + (", or sweep.test_split=" if split == config.sweep.test_split else "")
                )
        _check_metric(config, index, name)
    for parameter in space.values():
        for value in parameter.extremes():
            try:
                check_against_data(apply(config, {parameter.key: value}), index)
            except UsageError as error:
                raise UsageError(f"sweep.space: {parameter.key}: {error}") from error
    return categories


def _check_metric(config: TuneConfig, index: DatasetIndex, category: str) -> None:
    if config.sweep.metric == "silhouette_iou":
        return
    table = SampleTable.select(index, SPLIT, [category])
    try:
        known = table.read(0, views=[0], with_points=True).points is not None
    except DataError:
        return  # a damaged sample is the trials' to report
    if not known:
        raise UsageError(
            f"sweep.metric={config.sweep.metric}: {table.keys[0]} of {index.root} has no ground truth; take "
            "sweep.metric=silhouette_iou"
        )
