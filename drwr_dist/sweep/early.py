"""Which trials end early: successive halving, as pure functions of what has been measured.

Why not Ray Tune's scheduler: it would compare chairs with cars (one Chamfer distance says nothing about the other), it
ends a trial from outside, which can leave its workers' placement group behind (ray issue 54305), and what it knows is
lost with its process. Here a trial is compared with those of its own category, ends itself, and any process can decide
the same from the journal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def rungs(first: int, reduction: int, steps: int) -> list[int]:
    """Return the steps at which trials are compared, and the last step: first, first · reduction, …, steps."""
    found, rung = [], first
    while rung < steps:
        found.append(rung)
        rung *= reduction
    return [*found, steps]


def goes_on(loss: float, others: Sequence[float], reduction: int) -> bool:
    """Say whether a trial that has `loss` at a rung is among the best 1/reduction of those that have reached it.

    The rule of asynchronous successive halving (Li et al., MLSys 2020), in its stopping form: nobody waits, so the
    first trials at a rung always go on.

    Args:
        loss: what it has, lower is better.
        others: what the other trials of its category have had at this rung.
        reduction: η.
    """
    if len(others) + 1 < reduction:
        return True
    allowed = (len(others) + 1) // reduction
    return sum(other < loss for other in others) < allowed


def survivors(losses: dict[str, float], reduction: int) -> list[str]:
    """Return the best 1/reduction (rounded up) of all trials of a category at a rung, for halving in step."""
    ranking = sorted(losses, key=lambda name: (losses[name], name))
    return ranking[: math.ceil(len(ranking) / reduction)]
