"""How many trials run at the same time: as many as the cluster's nodes hold, counted as Ray would place them."""

from __future__ import annotations

from collections.abc import Sequence

Resources = dict[str, float]


def concurrent_trials(nodes: Sequence[Resources], workers: int, per_worker: Resources, driver_cpus: float) -> int:
    """Count the trials that fit, each with one driver and `workers` workers, onto what the nodes have.

    Trials beyond that would reserve their driver's share and then wait for workers, each for the other's.

    Args:
        nodes: resources of each node, {"CPU": 4.0, "GPU": 1.0, …}.
        workers: of one trial.
        per_worker: resources of one worker.
        driver_cpus: of the process that drives a trial.
    """
    free = [dict(node) for node in nodes]
    count = 0
    while _place(free, {"CPU": driver_cpus}) and all(_place(free, per_worker) for _ in range(workers)):
        count += 1
        if count >= 10_000:
            break
    return count


def _place(free: list[Resources], wanted: Resources) -> bool:
    """Take `wanted` from the first node that has it."""
    for node in free:
        if all(node.get(name, 0.0) + 1e-9 >= amount for name, amount in wanted.items()):
            for name, amount in wanted.items():
                node[name] -= amount
            return True
    return False
