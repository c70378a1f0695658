"""What is asked of a cluster's nodes before any worker starts: have they our software, do they see the run."""

from __future__ import annotations

import secrets
from pathlib import Path

from ray import cloudpickle

from drwr_dist import software
from drwr_dist.data.index import INDEX_NAME
from drwr_dist.data.remote import is_remote
from drwr_dist.engine.compiling import has_compiler
from drwr_dist.errors import UsageError
from drwr_dist.node_views import ask, other_nodes, works_here
from drwr_dist.storage import Storage

TOKEN = ".seen_by_all_nodes"


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
    answers = ask(other_nodes(), has_compiler, "compile")
    answers |= {"this machine": has_compiler()} if works_here() else {}
    lacking = [node for node, found in answers.items() if not found]
    if lacking:
        raise UsageError(
            f"compile={choice}: no C++ compiler on {', '.join(lacking)} (CXX, g++ or clang++); install one (Debian: "
            "apt install g++), or set compile=none"
        )


def check_nodes(storage: Storage, data: str) -> None:
    """Check every node that can take a worker: its software, and that it sees the run's folder and the dataset's.

    Args:
        storage: of the run; a token is written into its folder, for the nodes to read. A URL is seen by all.
        data: folder or URL of the dataset.

    Raises:
        UsageError: a node has another package or PyTorch, doesn't see a folder, or doesn't answer; names the node.
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

    def look() -> tuple[dict[str, str], list[bytes | None]]:
        return software.installed(), [path.read_bytes() if path.exists() else None for path in paths]

    cloudpickle.register_pickle_by_value(software)  # a node may have an older package
    try:
        for node, (versions, answer) in ask(others, look, "cluster.address").items():
            _check_software(node, versions)
            for (key, path), content in zip(wanted, answer, strict=True):
                if content != path.read_bytes():
                    raise UsageError(
                        f"{key}={path.parent}: the node {node} does not see this folder as this machine does, and the "
                        f"cluster has {len(others) + 1} nodes; give a folder that all nodes share (NFS), or a URL "
                        "(s3://BUCKET/PATH)"
                    )
    finally:
        (storage.folder / TOKEN).unlink(missing_ok=True)


def _check_software(node: str, versions: dict[str, str]) -> None:
    for name, here in software.installed().items():
        if versions[name].partition("+")[0] != here.partition("+")[0]:  # 2.13.0+cpu works with 2.13.0+cu130
            raise UsageError(
                f"cluster.address: the node {node} has {name} {versions[name]}, and this machine {here}; install the "
                "same on all nodes (ray up, or launch/install.sh)"
            )
