"""Which configurations are tried: candidate n is a function of the space, the seed, n and, for Optuna, of results.

So the plan of a sweep can be made again at any time, and a sweep that was interrupted goes on with the candidates that
an undisturbed one would have tried.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from drwr_dist.config import SweepConfig
from drwr_dist.errors import UsageError
from drwr_dist.sweep.space import Parameter, Parameters, grid

if TYPE_CHECKING:
    import optuna

STARTUP = 8  # candidates that Optuna draws at random before it models anything


@dataclass(frozen=True)
class Scored:
    """A candidate and how it did: what Optuna learns from."""

    parameters: Parameters
    objectives: tuple[float, ...] | None  # lower is better; None: it failed
    stopped_at: int | None = None  # step at which a trial of it was ended early


def generations(sweep: SweepConfig, space: dict[str, Parameter]) -> list[range]:
    """Return the numbers of the candidates that are planned together; candidate 0 is the baseline."""
    count = len(grid(space)) if sweep.search == "grid" else sweep.candidates
    first = 0 if sweep.baseline else 1
    if sweep.search != "optuna":
        return [range(first, count + 1)]
    starts = range(1, count + 1, sweep.generation)
    blocks = [range(start, min(start + sweep.generation, count + 1)) for start in starts]
    return [range(first, blocks[0].stop), *blocks[1:]]


def candidates(
    sweep: SweepConfig, space: dict[str, Parameter], seed: int, numbers: range, results: Sequence[Scored]
) -> list[Parameters]:
    """Return the parameters of the candidates `numbers` (from 1), given how all earlier generations did."""
    if sweep.search == "grid":
        every = grid(space)
        return [every[number - 1] for number in numbers]
    if sweep.search == "random":
        return [draw(space, seed, number) for number in numbers]
    return suggest(space, seed, numbers, results, objectives=len(sweep.objectives))


def draw(space: dict[str, Parameter], seed: int, number: int) -> Parameters:
    """Draw candidate `number` at random."""
    random = np.random.default_rng([seed, number])
    return {key: parameter.draw(random) for key, parameter in space.items()}


def suggest(
    space: dict[str, Parameter], seed: int, numbers: range, results: Sequence[Scored], objectives: int
) -> list[Parameters]:
    """Ask Optuna's TPE for the candidates `numbers`, after telling a new study every result so far."""
    optuna = import_optuna()
    sampler = optuna.samplers.TPESampler(seed=(seed * 100003 + numbers.start) % 2**32, n_startup_trials=STARTUP)
    study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler)
    tell(study, space, results)
    asked = distributions(space)
    chosen = []
    for _ in numbers:
        trial = study.ask(asked)
        chosen.append({key: from_optuna(space[key], trial.params[key]) for key in space})
    return chosen


def import_optuna() -> Any:
    """Import Optuna, quietly.

    Raises:
        UsageError: it isn't installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "sweep.search=optuna: Optuna is not installed; pip install 'drwr-dist[tune]', or sweep.search=random"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def distributions(space: dict[str, Parameter]) -> dict[str, Any]:
    """Translate the space into Optuna's terms; a choice is the number of its value, so that null and lists may be."""
    optuna = import_optuna()
    made: dict[str, Any] = {}
    for key, parameter in space.items():
        if parameter.kind == "choice":
            made[key] = optuna.distributions.CategoricalDistribution(list(range(len(parameter.values))))
        elif parameter.kind == "int":
            last = parameter.points()[-1] if parameter.step else round(parameter.high)
            step = round(parameter.step or 1)
            made[key] = optuna.distributions.IntDistribution(round(parameter.low), last, parameter.log, step)
        else:
            last = parameter.points()[-1] if parameter.step else parameter.high
            made[key] = optuna.distributions.FloatDistribution(parameter.low, last, parameter.log, parameter.step)
    return made


def tell(study: optuna.Study, space: dict[str, Parameter], results: Sequence[Scored]) -> None:
    """Add results to a study; those that lie outside the space (the baseline may) are left out."""
    optuna = import_optuna()
    state = optuna.trial.TrialState
    for scored in results:
        known = scored.objectives or ()
        values: list[float] | None = list(known)
        intermediate, ended = {}, state.COMPLETE
        if not known or not all(math.isfinite(value) for value in known):
            values, ended = None, state.FAIL
        elif scored.stopped_at is not None and len(known) == 1:
            values, intermediate, ended = None, {scored.stopped_at: known[0]}, state.PRUNED
        try:
            params = {key: to_optuna(space[key], scored.parameters[key]) for key in space}
            study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=distributions(space),
                    values=values,
                    intermediate_values=intermediate,
                    state=ended,
                )
            )
        except ValueError:
            continue


def to_optuna(parameter: Parameter, value: Any) -> Any:
    """Return a value as Optuna knows it. Raises ValueError for a choice that isn't one of its values."""
    return parameter.values.index(value) if parameter.kind == "choice" else value


def from_optuna(parameter: Parameter, value: Any) -> Any:
    """Return a value of Optuna's as the configuration takes it."""
    if parameter.kind == "choice":
        return parameter.values[value]
    return round(value) if parameter.kind == "int" else float(f"{value:.12g}")
