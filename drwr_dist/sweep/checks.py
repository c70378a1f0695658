"""Checks of a sweep before anything starts; every message names the key and the fix."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drwr_dist.config import SweepConfig, TrainConfig, TuneConfig
from drwr_dist.data.index import DatasetIndex
from drwr_dist.data.stream import SampleTable
from drwr_dist.engine.initial_weights import TF_PREFIX
from drwr_dist.errors import DataError, UsageError
from drwr_dist.sweep.measuring import CHOOSABLE, SPLIT
from drwr_dist.sweep.population import CHANGEABLE, UNCHANGEABLE
from drwr_dist.sweep.search import import_optuna
from drwr_dist.sweep.space import Parameter, Parameters, apply, grid, parse_space
from drwr_dist.sweep.trial_driver import trial_config
from drwr_dist.sweep.trials import Trial
from drwr_dist.training import check_against_data, lies_in, resolve_paths
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
AVERAGING = "communication.average_every"


def resolve_space(config: TuneConfig) -> None:
    """Make local paths among the values of `init` absolute, as `resolve_paths` does with the key's own."""
    declared = config.sweep.space.get("init")
    values = declared.get("values") if isinstance(declared, dict) else declared
    if isinstance(values, list):
        values[:] = [resolve_paths(TrainConfig(init=v)).init if isinstance(v, str) else v for v in values]


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
    space = parse_space(sweep.space)
    if not min(config.steps, *(space["steps"].extremes() if "steps" in space else [config.steps])):
        raise UsageError("steps=0: must be at least 1, a sweep compares what training makes of its configurations")
    _check_split_and_folder(config, space)
    varied: list[Parameters] = [{}, *({p.key: value} for p in space.values() for value in p.extremes())]
    for parameters in varied:
        _check_values(apply(config, parameters), parameters)
    _check_search(sweep, space)
    _check_scheduler(config, space)
    # Now as runs, measured where trials compare. Without a baseline none has the other keys as they are.
    others = {} if sweep.baseline else {p.key: p.extremes()[0] for p in space.values()}
    for parameters in varied:
        candidate, trial = apply(config, others | parameters), Trial(0, "category", others | parameters)
        _check_values(trial_config(candidate, sweep, Path(config.storage), trial, views=1), parameters)
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


def _check_split_and_folder(config: TuneConfig, space: dict[str, Parameter]) -> None:
    if config.data.split == SPLIT:
        raise UsageError(f"data.split={SPLIT}: a sweep compares its trials there; train on another split")
    sweep = str(Path(config.storage, config.name))
    for init in [config.init, *(space["init"].values if "init" in space else ())]:
        if config.overwrite and init and lies_in(init.removeprefix(TF_PREFIX), sweep):
            raise UsageError(
                f"init={init}: lies in the folder of this sweep, which overwrite=true would remove; give another "
                "name=…, or leave overwrite=true out"
            )


def _check_values(config: TrainConfig, parameters: Parameters) -> None:
    """Check what a configuration has become with these values of the space."""
    try:
        validate(config)
    except UsageError as error:
        raise UsageError("".join(f"sweep.space: {key}: " for key in parameters) + str(error)) from error


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
    periods = space[AVERAGING].extremes() if AVERAGING in space else []
    if sweep.baseline or not periods:
        periods = [config.communication.average_every, *periods]
    for period in periods:
        if every % period:
            raise UsageError(
                f"sweep.{key}={every}: must be a multiple of {AVERAGING}={period}, the workers of a trial differ in "
                "between"
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
