"""What is asked of a cluster before any worker starts: is it there, do its nodes see the run."""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from drwr_dist.data.index import INDEX_NAME
from drwr_dist.data.remote import is_remote
from drwr_dist.engine.compiling import has_compiler
from drwr_dist.errors import UsageError
from drwr_dist.node_views import ask, other_nodes
from drwr_dist.storage import Storage

CONNECT_TIMEOUT = 5.0  # seconds until something must answer at the cluster's address
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


def check_compile(choice: str, gpus: bool) -> None:
    """Check that the nodes can do what the key compile asks for.

    Args:
        choice: of the key compile.
        gpus: whether workers get GPUs.

    Raises:
        UsageError: CUDA graphs without GPUs, or a node without a compiler.
    """
    if choice == "none":
        return
    if choice == "cuda_graphs" and not gpus:
        raise UsageError("compile=cuda_graphs: the cluster has no GPU for the workers; set compile=inductor or none")
    answers = {"this machine": has_compiler(), **ask(other_nodes(), has_compiler, "compile")}
    lacking = [node for node, found in answers.items() if not found]
    if lacking:
        raise UsageError(
            f"compile={choice}: no C++ compiler on {', '.join(lacking)} (CXX, g++ or clang++); install one (Debian: "
            "apt install g++), or set compile=none"
        )


def check_shared(storage: Storage, data: str) -> None:
    """Check that every node that can take a worker sees the run's folder and the dataset's; URLs are seen by all.

    Args:
        storage: of the run; a token is written into its folder, for the nodes to read.
        data: folder or URL of the dataset.

    Raises:
        UsageError: a node doesn't see a folder, or doesn't answer; names the key, the folder and the node.
    """
    others = other_nodes()
    if not others:
        return
    wanted: list[tuple[str, Path]] = []
    if storage.url is None:
        (storage.folder / TOKEN).write_text(secrets.token_hex(16))
        wanted.append(("storage", storage.folder / TOKEN))
    if not is_remote(data):
        wanted.append(("data", Path(data, INDEX_NAME)))
    paths = [path for _, path in wanted]

    def read() -> list[bytes | None]:
        return [path.read_bytes() if path.exists() else None for path in paths]

    try:
        for node, answer in ask(others, read, "cluster.address").items():
            for (key, path), content in zip(wanted, answer, strict=True):
                if content != path.read_bytes():
                    raise UsageError(
                        f"{key}={path.parent}: the node {node} does not see this folder as this machine does, and the "
                        f"cluster has {len(others) + 1} nodes; give a folder that all nodes share (NFS), or a URL "
                        "(s3://BUCKET/PATH)"
                    )
    finally:
        (storage.folder / TOKEN).unlink(missing_ok=True)
