"""What runs on every node: an actor that answers questions about where it is.

It travels by value, and imports what it asks about only when asked: so it also runs where our package, or PyTorch, is
missing or another one. That is why this module imports the standard library alone, and drwr_dist.software, which
travels by value too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from drwr_dist.software import code_digest


class Probe:
    """Answers for the node that it runs on."""

    def facts(self) -> dict[str, Any]:
        """Return versions, free space (bytes), GPUs, the network interface and the authentication mode."""
        return {
            "drwr_dist": _version("drwr_dist"),
            "torch": _version("torch"),
            "ray": _version("ray"),
            "python": ".".join(map(str, sys.version_info[:3])),
            "gpus": _gpus(),
            "disk": shutil.disk_usage("/tmp").free,
            "shm": shutil.disk_usage("/dev/shm").free,
            "interface": os.environ.get("GLOO_SOCKET_IFNAME", ""),
            "authentication": os.environ.get("RAY_AUTH_MODE", ""),
        }

    def clock(self) -> float:
        """Return this node's time."""
        return time.time()

    def write(self, folder: str, name: str) -> None:
        """Write a small file to the storage, a folder or a URL, as a checkpoint is written."""
        if "://" in folder:
            _filesystem(folder).pipe_file(f"{folder}/{name}", name.encode())
            return
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, name)
        with open(f"{path}.partial", "w") as file:
            file.write(name)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.partial", path)

    def missing(self, folder: str, names: list[str]) -> list[str]:
        """Return which of the files that the nodes wrote can't be read here; waits a little for a network's caches."""
        deadline = time.monotonic() + 5
        while True:
            absent = [name for name in names if not _exists(folder, name)]
            if not absent or time.monotonic() > deadline:
                return absent
            if "://" not in folder:
                os.listdir(folder)  # network file systems look again when a folder is listed
            time.sleep(0.2)

    def remove(self, folder: str, name: str) -> None:
        """Remove the file that `write` wrote."""
        if "://" in folder:
            _filesystem(folder).rm_file(f"{folder}/{name}")
            return
        os.remove(os.path.join(folder, name))

    def read_shards(self, data: str, limit: int) -> tuple[str, int]:
        """Read the index, and the first sample of up to `limit` shards; return (digest of the index, shards read)."""
        import hashlib

        from drwr_dist.data.index import load_index, read_sample

        index = load_index(data)
        for number in range(min(limit, len(index.shards))):
            read_sample(index, number, 0)
        return hashlib.sha256(repr(index.shards).encode()).hexdigest(), min(limit, len(index.shards))

    def open_store(self, address: str, world_size: int, timeout: float) -> int:
        """Open the meeting point of an all-reduce on this node; return its port."""
        from datetime import timedelta

        import torch.distributed as dist

        limits: dict[str, Any] = {"timeout": timedelta(seconds=timeout), "wait_for_workers": False}
        self._store = dist.TCPStore(address, 0, world_size, is_master=True, **limits)  # type: ignore[attr-defined]
        return int(self._store.port)

    def reduce(
        self, backend: str, address: str, port: int, rank: int, world_size: int, size: int, timeout: float
    ) -> float:
        """Take part in all-reduces of `size` bytes; return the median of their seconds.

        Raises:
            ValueError: a sum came out wrong.
        """
        from datetime import timedelta

        import torch
        import torch.distributed as dist

        wait = timedelta(seconds=timeout)
        store = self._store if rank == 0 else dist.TCPStore(address, port, world_size, timeout=wait)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=wait)
        try:
            device = "cuda" if backend == "nccl" else "cpu"
            times = []
            for _ in range(5):
                tensor = torch.full((size // 4,), float(rank + 1), device=device)
                begin = time.perf_counter()
                dist.all_reduce(tensor)
                total = float(tensor[-1])  # waits for the GPU
                times.append(time.perf_counter() - begin)
                if total != world_size * (world_size + 1) / 2:
                    raise ValueError(f"the sum over {world_size} nodes came out as {total}")
            return sorted(times)[len(times) // 2]
        finally:
            dist.destroy_process_group()


def _filesystem(url: str) -> Any:
    """Return the filesystem that a URL names, without what it remembers of earlier looks."""
    import fsspec

    system, _ = fsspec.core.url_to_fs(url)
    system.invalidate_cache()
    return system


def _exists(folder: str, name: str) -> bool:
    if "://" in folder:
        return bool(_filesystem(folder).exists(f"{folder}/{name}"))
    return os.path.exists(os.path.join(folder, name))


def package_version() -> str:
    """Return the version of drwr_dist that this process imports, with a digest of its code."""
    return _version("drwr_dist")


def _version(name: str) -> str:
    """Return a package's version, for our own with a digest of its code; "missing: …" where it can't be imported."""
    import importlib

    try:
        module = importlib.import_module(name)
    except Exception as error:  # whatever a broken installation raises
        return f"missing: {type(error).__name__}: {error}"
    version = str(module.__version__)
    return f"{version} ({code_digest(Path(str(module.__file__)).parent)})" if name == "drwr_dist" else version


def _gpus() -> list[str]:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20).stdout.split("\n")[:-1]
    except (OSError, subprocess.TimeoutExpired):
        return []
