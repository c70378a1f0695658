"""What the other nodes of a Ray cluster see of this machine's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drwr_dist.errors import UsageError

Answer = TypeVar("Answer")

PROBE_TIMEOUT = 120.0  # seconds for a node to start a process and look at a file


def other_nodes() -> dict[str, str]:
    """Return id → address of the nodes, but for this one, that can take work."""
    here = ray.get_runtime_context().get_node_id()
    return {node: address for node, address in _working_nodes().items() if node != here}


def works_here() -> bool:
    """Say whether this node can take work; the head of a cluster may have been started without CPUs."""
    return ray.get_runtime_context().get_node_id() in _working_nodes()


def _working_nodes() -> dict[str, str]:
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    return {node["NodeID"]: node["NodeManagerAddress"] for node in nodes}


def ask(nodes: dict[str, str], look: Callable[[], Answer], key: str) -> dict[str, Answer]:
    """Call a function on nodes: `address (id)` → what it returns there.

    Args:
        nodes: id → address.
        look: what to call.
        key: of the configuration, named where a node doesn't answer.

    Raises:
        UsageError: a node runs no task.
    """
    task = ray.remote(num_cpus=0)(look)
    asked = {
        f"{address} ({node[:8]})": task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node, address in nodes.items()
    }
    answers = {}
    for node, reference in asked.items():
        try:
            answers[node] = ray.get(reference, timeout=PROBE_TIMEOUT)
        except Exception as error:
            cause = getattr(error, "cause", None) or error  # of a task that failed; Ray's own message is a traceback
            reason = f"{type(cause).__name__}: {(str(cause).splitlines() or ['no answer'])[0]}"
            raise UsageError(f"{key}: the node {node} runs no task: {reason}") from error
    return answers


def check_seen(places: Sequence[tuple[str, str]]) -> None:
    """Check that all nodes see files and folders as this machine does.

    Args:
        places: (key of the configuration, path).

    Raises:
        UsageError: one doesn't; names the key, the path and the node.
    """
    nodes = other_nodes()
    if not nodes or not places:
        return

    def look() -> list[list[str] | int | None]:
        found: list[list[str] | int | None] = []
        for _, place in places:
            path = Path(place)
            found.append(sorted(os.listdir(path)) if path.is_dir() else path.stat().st_size if path.exists() else None)
        return found

    here = look()
    for node, there in ask(nodes, look, "RAY_ADDRESS").items():
        for (key, place), mine, its in zip(places, here, there, strict=True):
            if mine != its:
                raise UsageError(
                    f"{key}={place}: the node {node} does not see this as this machine does, and the cluster has "
                    f"{len(nodes) + 1} nodes; give a folder that all nodes share (NFS), or engine=processes to work "
                    "on this machine alone"
                )
