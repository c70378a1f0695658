"""Population based training (Jaderberg et al. 2017): the worst take over weights and values of the best, and vary them.

All members train to the same step before they are compared, one wave after the other, so a population may be larger
than what runs at a time, and the exchange is a function of (seed, step, losses).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from drwr_dist.config import PopulationConfig
from drwr_dist.sweep.space import Parameter, Parameters

# Keys that a run can change on its way: neither the network nor the order of the samples depends on them.
CHANGEABLE = ("loss.", "optimizer.")
UNCHANGEABLE = ("loss.semantics", "optimizer.weight_decay")  # but what is learnt, and what a checkpoint brings along


def exchanges(losses: dict[str, float], config: PopulationConfig, random: np.random.Generator) -> dict[str, str]:
    """Return, for each member that gives up its weights, the member that it takes them from."""
    ranking = sorted(losses, key=lambda name: (losses[name], name))
    count = min(math.ceil(len(ranking) * config.quantile), len(ranking) // 2)
    if not count:
        return {}
    best, worst = ranking[:count], ranking[-count:]
    return {loser: best[int(random.integers(count))] for loser in worst}


def perturb(
    parameters: Parameters, space: dict[str, Parameter], factor: float, random: np.random.Generator
) -> Parameters:
    """Vary the donor's values: numbers by the factor up or down, within their range; choices to a neighbour."""
    return {key: _moved(space[key], value, factor, bool(random.integers(2))) for key, value in parameters.items()}


def _moved(parameter: Parameter, value: Any, factor: float, up: bool) -> Any:
    if parameter.kind == "choice" or parameter.step is not None:
        points = parameter.points()
        place = points.index(value) if value in points else 0
        return points[min(max(place + (1 if up else -1), 0), len(points) - 1)]
    moved = min(max(value * factor if up else value / factor, parameter.low), parameter.high)
    return round(moved) if parameter.kind == "int" else float(f"{moved:.12g}")
