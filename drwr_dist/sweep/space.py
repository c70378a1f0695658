"""The search space: which keys are varied, and over what; declared in YAML, checked before anything starts.

For example {"optimizer.learning_rate": {"low": 1e-4, "high": 3e-3, "log": True}, "loss.grid": {"values": [32, 64]}}.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import types
import typing
from dataclasses import dataclass
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drwr_dist.config import FREE_GROUPS, FREE_KEYS, TrainConfig, flat_keys, from_plain, to_plain
from drwr_dist.errors import UsageError

FIELDS = {"type", "low", "high", "log", "step", "values"}
TYPES = ("float", "int", "choice")
FEW = 64  # whole numbers of a range that are checked one by one
FIXED = {"data.path", "data.categories", "data.split"}  # what is compared must be measured on the same objects

Parameters = dict[str, Any]  # key -> value


@dataclass(frozen=True)
class Parameter:
    """One key that is varied: a range of numbers, or a list of values."""

    key: str
    kind: str  # float | int | choice
    low: float = 0.0
    high: float = 0.0  # included
    log: bool = False  # drawn uniformly in the logarithm
    step: float | None = None  # distance of the values, counted from low; None: any float, every int
    values: tuple[Any, ...] = ()  # of a choice

    def draw(self, random: np.random.Generator) -> Any:
        """Draw one value."""
        if self.kind == "choice":
            return self.values[int(random.integers(len(self.values)))]
        if self.step is not None or self.kind == "int":
            if not self.log:
                points = self.points()
                return points[int(random.integers(len(points)))]
            value = math.exp(random.uniform(math.log(self.low - 0.5), math.log(self.high + 0.5)))
            return self._clipped(round(value))
        if self.log:
            return self._clipped(math.exp(random.uniform(math.log(self.low), math.log(self.high))))
        return self._clipped(float(random.uniform(self.low, self.high)))

    def points(self) -> list[Any]:
        """Return every value that it can take.

        Raises:
            UsageError: a range of floats without a step has no end of them.
        """
        if self.kind == "choice":
            return list(self.values)
        if self.step is None and (self.kind == "float" or self.log):
            raise UsageError(
                f"sweep.space: {self.key}: a grid over a continuous range; give step=… or values=[…], "
                "or take sweep.search=random"
            )
        step = self.step or 1
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self._typed(self.low + number * step) for number in range(count)]

    def extremes(self) -> list[Any]:
        """Return values that must all be possible for the whole range to be: all of a list, the ends of a range.

        Of a few whole numbers all: where a key has to divide another, one between two that do need not.
        """
        if self.kind == "choice":
            return list(self.values)
        every = range(round(self.low), round(self.high) + 1, round(self.step or 1)) if self.kind == "int" else ()
        return list(every) if 0 < len(every) <= FEW else [self._typed(self.low), self._typed(self.high)]

    def _clipped(self, value: float) -> Any:
        return self._typed(min(max(value, self.low), self.high))

    def _typed(self, value: float) -> Any:
        # Twelve digits: 0.1 + 2 · 0.1 is to be 0.3 in every file that names it.
        return round(value) if self.kind == "int" else float(f"{value:.12g}")


def parse_space(content: dict[str, Any]) -> dict[str, Parameter]:
    """Return the parameters of `sweep.space`, which may be nested by groups or have dotted keys.

    Raises:
        UsageError: names the key, what is wrong with it, and the fix.
    """
    declared = _declarations(content, "")
    if not declared:
        raise UsageError(
            "sweep.space: empty; name at least one key, as in sweep.space: {optimizer.learning_rate: "
            "{low: 1e-4, high: 1e-3, log: true}}"
        )
    return {key: _parameter(key, fields) for key, fields in declared.items()}


def _declarations(content: dict[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, list):
            rows[key] = {"values": value}
        elif not isinstance(value, dict):
            raise UsageError(f"sweep.space: {key}: {value!r} is one value; give values=[…], or low=… and high=…")
        elif FIELDS & set(value) or not value or key in known_keys():
            rows[key] = value
        else:
            rows |= _declarations(value, f"{key}.")
    return rows


def known_keys() -> dict[str, tuple[type, ...]]:
    """Return every key of training with the types that it takes."""
    return dict(_typed_keys(TrainConfig, ""))


def _typed_keys(schema: type, prefix: str) -> typing.Iterator[tuple[str, tuple[type, ...]]]:
    for name, hint in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from _typed_keys(hint, f"{prefix}{name}.")
        else:
            union = typing.get_origin(hint) in (types.UnionType, typing.Union)
            yield prefix + name, typing.get_args(hint) if union else (hint,)


def _parameter(key: str, fields: dict[str, Any]) -> Parameter:
    _check_key(key)
    if unknown := sorted(set(fields) - FIELDS):
        raise UsageError(f"sweep.space: {key}: unknown field {unknown[0]}; there are {', '.join(sorted(FIELDS))}")
    if "values" in fields:
        return _choice(key, fields)
    if fields.get("type") == "choice":
        raise UsageError(f"sweep.space: {key}: type: choice needs values=[…]")
    if missing := [name for name in ("low", "high") if name not in fields]:
        raise UsageError(f"sweep.space: {key}: {missing[0]} is missing; give low=… and high=…, or values=[…]")
    return _range(key, fields)


def _check_key(key: str) -> None:
    keys = known_keys()
    if key not in keys:
        near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        raise UsageError(
            f"sweep.space: unknown key {key}" + (f"; did you mean {near[0]}?" if near else "; see train --help")
        )
    if key in FIXED or (key in FREE_KEYS and key != "steps") or key.split(".")[0] in FREE_GROUPS:
        hint = "list the categories under sweep.categories" if key == "data.categories" else "set it for all trials"
        raise UsageError(f"sweep.space: {key} can't be varied, it does not change what is learnt; {hint}")


def _choice(key: str, fields: dict[str, Any]) -> Parameter:
    values = fields["values"]
    if extra := sorted(set(fields) - {"values", "type"}):
        raise UsageError(f"sweep.space: {key}: {extra[0]} goes with low and high, not with values; leave one out")
    if fields.get("type", "choice") != "choice":
        raise UsageError(f"sweep.space: {key}: type: {fields['type']} goes with low and high; values are type: choice")
    if not isinstance(values, list) or not values:
        raise UsageError(f"sweep.space: {key}: values={values!r}: give a list of at least one value")
    typed = tuple(_as_the_key_takes_it(key, value) for value in values)
    if len({repr(value) for value in typed}) < len(typed):
        raise UsageError(f"sweep.space: {key}: values={values}: a value stands there twice; remove one")
    return Parameter(key, "choice", values=typed)


def _as_the_key_takes_it(key: str, value: Any) -> Any:
    """Convert a value as the training configuration would (the text 1e-4 of YAML is a number for a float key)."""
    nested: Any = value
    for part in reversed(key.split(".")):
        nested = {part: nested}
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), nested)
    except OmegaConfBaseException as error:
        raise UsageError(f"sweep.space: {key}: {value!r}: {str(error).splitlines()[0]}") from error
    return flat_keys(to_plain(typing.cast(TrainConfig, OmegaConf.to_object(merged))))[key]


def _range(key: str, fields: dict[str, Any]) -> Parameter:
    takes = known_keys()[key]
    natural = "float" if float in takes else "int" if int in takes else None
    if natural is None:
        raise UsageError(f"sweep.space: {key}: not a number; give values=[…] instead of low and high")
    kind = fields.get("type", natural)
    if kind not in TYPES:
        raise UsageError(f"sweep.space: {key}: type={kind}: choose one of {', '.join(TYPES)}")
    if kind == "float" and natural == "int":
        raise UsageError(f"sweep.space: {key}: type: float, but the key takes whole numbers; write type: int")
    log = fields.get("log", False)
    if not isinstance(log, bool):
        raise UsageError(f"sweep.space: {key}: log={log!r}: true or false")
    low, high = _number(key, "low", fields["low"], kind), _number(key, "high", fields["high"], kind)
    step = None if fields.get("step") is None else _number(key, "step", fields["step"], kind)
    if low > high:
        raise UsageError(f"sweep.space: {key}: low={low:g} is above high={high:g}; swap them")
    if low == high:
        raise UsageError(f"sweep.space: {key}: low and high are both {low:g}; set {key}={low:g} outside the space")
    if log and low <= 0:
        raise UsageError(f"sweep.space: {key}: log: true needs low above 0, not {low:g}; raise low, or log: false")
    if log and step is not None:
        raise UsageError(f"sweep.space: {key}: log and step exclude each other; leave one out, or give values=[…]")
    if step is not None and not 0 < step <= high - low:
        raise UsageError(f"sweep.space: {key}: step={step:g}: must be above 0 and at most high - low = {high - low:g}")
    return Parameter(key, kind, low, high, log, step)


def _number(key: str, name: str, value: Any, kind: str) -> float:
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"sweep.space: {key}: {name}={value!r}: not a finite number")
    if kind == "int" and number != round(number):
        raise UsageError(f"sweep.space: {key}: {name}={value}: the key takes whole numbers")
    return number


def grid(space: dict[str, Parameter]) -> list[Parameters]:
    """Return every combination of the space's values, the last key changing fastest."""
    return [dict(zip(space, row, strict=True)) for row in itertools.product(*(p.points() for p in space.values()))]


def apply(config: TrainConfig, parameters: Parameters) -> TrainConfig:
    """Return a copy of a training configuration with some keys set."""
    content = {name: value for name, value in to_plain(config).items() if name != "sweep"}
    for key, value in parameters.items():
        *groups, name = key.split(".")
        place = content
        for group in groups:
            place = place[group]
        place[name] = value
    return from_plain(content)


def values_of(config: TrainConfig, space: dict[str, Parameter]) -> Parameters:
    """Return the values that a configuration has for the keys of the space."""
    flat = flat_keys(to_plain(config))
    return {key: flat[key] for key in space}
