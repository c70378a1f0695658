"""One probe on every node of the running cluster, asked in parallel, with a limit on the time."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drwr_dist import software
from drwr_dist.preflight import probe


@dataclass(frozen=True)
class Node:
    """A node of the cluster that is alive."""

    name: str  # host name and address
    address: str
    resources: Mapping[str, float]
    actor: Any  # its probe

    @property
    def trains(self) -> bool:
        """Whether workers can run there."""
        return self.resources.get("CPU", 0) > 0 or self.gpus > 0

    @property
    def gpus(self) -> int:
        """GPUs that Ray gives out there."""
        return int(self.resources.get("GPU", 0))


@dataclass(frozen=True)
class Answer:
    """What a node answered: a value, or why there is none."""

    value: Any = None
    problem: str = ""


def addresses_of_the_living() -> set[str]:
    """Return the addresses of all nodes that are alive."""
    return {entry["NodeManagerAddress"] for entry in ray.nodes() if entry["Alive"]}


def gather_crew() -> list[Node]:
    """Start a probe on every living node, the head first."""
    for module in (probe, software):
        cloudpickle.register_pickle_by_value(module)
    nodes = []
    entries = sorted((entry for entry in ray.nodes() if entry["Alive"]), key=_order)
    hosts = Counter(entry["NodeManagerAddress"] for entry in entries)
    for entry in entries:
        there = NodeAffinitySchedulingStrategy(entry["NodeID"], soft=False)
        actor = ray.remote(num_cpus=0, max_concurrency=4)(probe.Probe).options(scheduling_strategy=there).remote()
        name = f"{entry['NodeManagerHostname']} {entry['NodeManagerAddress']}"
        if hosts[entry["NodeManagerAddress"]] > 1:  # several nodes on one machine, which need names of their own
            name += f" ({entry['NodeID'][:8]})"
        nodes.append(Node(name, entry["NodeManagerAddress"], entry["Resources"], actor))
    return nodes


def _order(entry: Mapping[str, Any]) -> tuple[bool, str]:
    return ("node:__internal_head__" not in entry["Resources"], str(entry["NodeManagerAddress"]))


def ask(nodes: list[Node], question: Callable[[int, Node], Any], timeout: float) -> list[Answer]:
    """Ask all nodes at a time.

    Args:
        nodes: whom to ask.
        question: (number, node) to the call, such as `node.actor.facts.remote()`.
        timeout: seconds until all must have answered; those that have not get a problem.
    """
    calls = [question(number, node) for number, node in enumerate(nodes)]
    deadline = time.monotonic() + timeout
    answers = []
    for call in calls:
        try:
            answers.append(Answer(ray.get(call, timeout=max(0.1, deadline - time.monotonic()))))
        except ray.exceptions.GetTimeoutError:
            answers.append(Answer(problem=f"no answer within {timeout:.0f} s"))
        except ray.exceptions.RayTaskError as error:
            answers.append(Answer(problem=f"{type(error.cause).__name__}: {error.cause}"))
        except ray.exceptions.RayError as error:
            answers.append(Answer(problem=str(error).splitlines()[0]))
    return answers


def dismiss(nodes: list[Node]) -> None:
    """End the probes."""
    for node in nodes:
        ray.kill(node.actor)
