"""What is asked of a cluster before any worker starts: is it there, do its nodes see the run."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from drwr_dist.data.index import INDEX_NAME
from drwr_dist.data.remote import is_remote
from drwr_dist.errors import UsageError
from drwr_dist.storage import Storage

CONNECT_TIMEOUT = 5.0  # seconds until something must answer at the cluster's address
PROBE_TIMEOUT = 120.0  # seconds for a node to start a process and look at a file
TOKEN = ".seen_by_all_nodes"


def check_reachable(address: str) -> None:
    """Raise UsageError where nothing answers at HOST:PORT; Ray itself would try for minutes.

    Args:
        address: of the key cluster.address; `auto` and ray:// addresses are left to Ray.
    """
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdigit():
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"cluster.address={address}: no Ray cluster answers there ({reason}); start one (ray start --head), or "
            "set cluster.address=local"
        ) from error


def check_shared(storage: Storage, data: str) -> None:
    """Check that every node that can take a worker sees the run's folder and the dataset's; URLs are seen by all.

    Args:
        storage: of the run; a token is written into its folder, for the nodes to read.
        data: folder or URL of the dataset.

    Raises:
        UsageError: a node doesn't see a folder, or doesn't answer; names the key, the folder and the node.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    others = {node["NodeID"]: node["NodeManagerAddress"] for node in nodes if node["NodeID"] != here}
    if not others:
        return
    wanted: list[tuple[str, Path]] = []
    if storage.url is None:
        (storage.folder / TOKEN).write_text(secrets.token_hex(16))
        wanted.append(("storage", storage.folder / TOKEN))
    if not is_remote(data):
        wanted.append(("data", Path(data, INDEX_NAME)))
    try:
        for node, answer in _ask(others, [path for _, path in wanted]).items():
            for (key, path), content in zip(wanted, answer, strict=True):
                if content != path.read_bytes():
                    raise UsageError(
                        f"{key}={path.parent}: the node {node} does not see this folder as this machine does, and the "
                        f"cluster has {len(others) + 1} nodes; give a folder that all nodes share (NFS), or a URL "
                        "(s3://BUCKET/PATH)"
                    )
    finally:
        (storage.folder / TOKEN).unlink(missing_ok=True)


def _ask(nodes: dict[str, str], paths: list[Path]) -> dict[str, list[bytes | None]]:
    """Return what every node reads at some paths: node address and id -> a content, or None, for each path."""

    def read() -> list[bytes | None]:
        return [path.read_bytes() if path.exists() else None for path in paths]

    task = ray.remote(num_cpus=0)(read)
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
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UsageError(f"cluster.address: the node {node} runs no task: {reason}") from error
    return answers
