"""What can be wrong with a host: done to it, and undone."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from lab import Host


@contextlib.contextmanager
def without_rsync(host: Host) -> Iterator[None]:
    """Take rsync off a host's /usr/bin, as where it was never installed."""
    layers = "lowerdir=/usr/bin,upperdir=/run/bin,workdir=/run/bin-work"
    done = host.run(
        f"mkdir -p /run/bin /run/bin-work && mount -t overlay overlay -o {layers} /usr/bin && rm -f /usr/bin/rsync"
    )
    assert done.returncode == 0, done.stdout
    try:
        yield
    finally:
        assert host.run("umount --lazy /usr/bin").returncode == 0


@contextlib.contextmanager
def listening(host: Host, address: str, port: int) -> Iterator[None]:
    """Let some server take a port of a host."""
    server = host.start(f"exec python -m http.server --bind {address} {port}", host.lab.folder.parent / "server.log")
    try:
        while str(port) not in listeners(host):
            assert server.poll() is None, f"port {port} of {host.name} was not free"
        yield
    finally:
        host.run(f"pkill -f 'http.server --bind {address} {port}'")  # on this host alone: it sees its own processes
        server.wait(timeout=60)


@contextlib.contextmanager
def another_torch(host: Host, version: str) -> Iterator[None]:
    """Let PyTorch on a host say that it is another version."""
    file = host.path(Path(torch.__file__).resolve().with_name("version.py"))
    before = file.read_text()
    changed, count = re.subn(r"^__version__ = .*$", f"__version__ = '{version}'", before, flags=re.MULTILINE)
    assert count == 1
    file.write_text(changed)
    try:
        yield
    finally:
        file.write_text(before)


def listeners(host: Host) -> dict[str, set[str]]:
    """Return the TCP ports that are listened at on a host, and the addresses they are bound to."""
    found: dict[str, set[str]] = defaultdict(set)
    for line in host.run("ss -Hltn").stdout.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        found[port].add(address.strip("[]").removeprefix("::ffff:"))
    return dict(found)
