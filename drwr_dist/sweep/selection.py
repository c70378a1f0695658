"""Which trials win: the best of each category, and the candidate that is best on the whole; no files are read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from drwr_dist.sweep.measuring import loss_of
from drwr_dist.sweep.search import Scored
from drwr_dist.sweep.trials import FAILED, FINISHED, STOPPED, Trial


def ranking(trials: Sequence[Trial], category: str, metric: str) -> list[Trial]:
    """Return the measured trials of a category, best first: who got further stands before who was ended early."""
    measured = [t for t in trials if t.category == category and t.last is not None and t.state in (FINISHED, STOPPED)]
    return sorted(measured, key=lambda t: _place(t, metric))


def _place(trial: Trial, metric: str) -> tuple[bool, float, float, int]:
    assert trial.last is not None
    return (
        trial.state != FINISHED,
        -trial.last["step"] if trial.state != FINISHED else 0.0,
        loss_of(metric, trial.last["value"]),
        trial.candidate,
    )


def pareto(trials: Sequence[Trial], category: str, metric: str) -> list[Trial]:
    """Return the finished trials of a category that none surpasses in both metric and training time, best first."""
    front: list[Trial] = []
    for trial in ranking(trials, category, metric):
        fastest = min((t.last["seconds"] for t in front if t.last), default=math.inf)
        if trial.state == FINISHED and trial.last and trial.last["seconds"] < fastest:
            front.append(trial)
    return front


def best_of_category(trials: Sequence[Trial], category: str, metric: str) -> Trial | None:
    """Return the best trial that has trained to its end."""
    found = [trial for trial in ranking(trials, category, metric) if trial.state == FINISHED]
    return found[0] if found else None


def mean_ranks(trials: Sequence[Trial], categories: Sequence[str], metric: str) -> dict[int, float]:
    """Return the mean rank (1 is best) over the categories of each candidate that was measured in all of them.

    Ranks count only such candidates, so that a category in which another one failed doesn't shift them.
    """
    orders = {category: [t.candidate for t in ranking(trials, category, metric)] for category in categories}
    common = set.intersection(*(set(order) for order in orders.values())) if orders else set()
    places = {category: [number for number in order if number in common] for category, order in orders.items()}
    return {
        number: sum(places[category].index(number) + 1 for category in categories) / len(categories)
        for number in sorted(common)
    }


def shared_order(trials: Sequence[Trial], categories: Sequence[str], metric: str) -> list[int]:
    """Return the candidates by mean rank, then by the mean logarithm of the metric, then by number."""
    ranks = mean_ranks(trials, categories, metric)
    scores = {scored: log_mean([t for t in trials if t.candidate == scored], metric) for scored in ranks}
    return sorted(ranks, key=lambda number: (ranks[number], scores[number], number))


def log_mean(trials: Sequence[Trial], metric: str) -> float:
    """Return the mean logarithm of the metric over a candidate's categories, less is better.

    A quarter less Chamfer distance counts the same for a category in which it is large as where it is small.
    """
    logs = [math.log(max(trial.last["value"], 1e-12)) for trial in trials if trial.last]
    return loss_of(metric, sum(logs) / len(logs)) if logs else math.inf


def scored(trials: Sequence[Trial], metric: str, objectives: Sequence[str]) -> list[Scored]:
    """Return what the search learns from: the candidates whose trials have all ended."""
    rows = []
    for number in sorted({trial.candidate for trial in trials}):
        own = [trial for trial in trials if trial.candidate == number]
        if not all(trial.ended for trial in own):
            continue
        failed = any(trial.state == FAILED or trial.last is None for trial in own)
        values = {"quality": log_mean(own, metric), "seconds": sum(t.last["seconds"] for t in own if t.last)}
        early = [int(t.last["step"]) for t in own if t.state == STOPPED and t.last]
        rows.append(
            Scored(
                own[0].parameters,
                None if failed else tuple(values[name] for name in objectives),
                min(early) if early else None,
            )
        )
    return rows


def worth_keeping(trials: Sequence[Trial], categories: Sequence[str], metric: str, keep: int) -> set[str]:
    """Return the ids of the trials whose weights may still be asked for."""
    first = {trial.id for category in categories for trial in ranking(trials, category, metric)[:keep]}
    shared = set(shared_order(trials, categories, metric)[:keep])
    return first | {trial.id for trial in trials if trial.candidate in shared}
