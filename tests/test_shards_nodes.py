"""Imports on a Ray cluster of two nodes, one of which has a mount namespace of its own: it does not see all files."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from toy import REPOSITORY, drwr, make_meshes

pytestmark = pytest.mark.slow
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """An address, and a folder whose part `hidden` the second node sees empty."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "hidden").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    scratch = tempfile.mkdtemp(prefix="ray-")  # sockets have short names
    common = [
        "--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats",
        "--block",
    ]  # fmt: skip
    head = [RAY, "start", "--head", f"--port={address.split(':')[1]}", "--include-dashboard=false", *common]
    other = " ".join([RAY, "start", f"--address={address}", *common])
    commands = [
        [*head, f"--temp-dir={scratch}"],
        ["unshare", "--mount", "sh", "-c", f"mount -t tmpfs none '{folder}/hidden' && exec {other}"],
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_AUTH_MODE": "disabled"}
    nodes: list[subprocess.Popen[bytes]] = []
    log = (folder / "log").open("wb")
    try:
        for number, command in enumerate(commands, start=1):
            nodes.append(
                subprocess.Popen(
                    command, stdout=log, stderr=log, env=environment,
                    start_new_session=True,
                )
            )  # fmt: skip
            deadline = time.monotonic() + 120
            while alive(address) < number:
                assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
        yield address, folder
    finally:
        for node in nodes:
            os.killpg(node.pid, signal.SIGTERM)
            node.wait(60)
        shutil.rmtree(scratch, ignore_errors=True)


def alive(address: str) -> int:
    from ray._raylet import GcsClient

    try:
        return sum(node.state == 0 for node in GcsClient(address=address).get_all_node_info(timeout=5).values())
    except ray.exceptions.RpcError:
        return 0


def test_two_nodes(cluster: tuple[str, Path], tmp_path: Path):
    """The bytes are those of one process; a folder that a node does not see is refused before anything is read."""
    address, folder = cluster
    make_meshes(folder / "meshes", {"brick": 8})
    make_meshes(folder / "hidden/meshes", {"brick": 8})
    small = ["source=meshes", "views=2", "image_size=32", "ground_truth_voxel=0.05", "name=same"]
    for name, where in (("one", {}), ("two", {"RAY_ADDRESS": address})):
        done = drwr(
            "shards import", *small, f"input={folder / 'meshes'}", f"output={folder / name}",
            "workers=1" if name == "one" else "workers=0", **where,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    one, two = ({path.name: path.read_bytes() for path in (folder / name).iterdir()} for name in ("one", "two"))
    assert one == two and "index.json" in one
    refused = drwr(
        "shards import", *small, f"input={folder / 'hidden/meshes'}", f"output={folder / 'three'}", RAY_ADDRESS=address
    )
    assert refused.returncode == 2, refused.stderr
    line = refused.stderr.splitlines()[-1]
    assert line.startswith(f"error: input={folder / 'hidden/meshes'}: the node ") and "2 nodes" in line
    assert not (folder / "three").exists()
