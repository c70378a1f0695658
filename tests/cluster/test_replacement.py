"""Workers on a Ray cluster of this machine, one of whose nodes is killed: the run waits for another."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from runs import OF_ANY_LENGTH, check_against_undisturbed, start, wait_for_step

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_a_replacement_takes_the_place_of_a_lost_node(
    cluster,
    toy_dataset: Path,
    tmp_path: Path,
    joins_ray: str,
):
    ray_cluster, nodes = cluster
    address = f"cluster.address={ray_cluster.address}"
    process = start(toy_dataset, tmp_path, "name=nodes", address, "workers=2", "steps=100000", *OF_ANY_LENGTH)
    wait_for_step(tmp_path / "nodes", 50, process)
    ray_cluster.remove_node(nodes[1], allow_graceful=False)
    ray_cluster.add_node(num_cpus=1)
    assert process.stdout is not None
    line = ""
    while not (found := re.search(r"resuming after step (\d+)", line)):
        line = process.stdout.readline()
        assert line, process.stderr.read() if process.stderr else ""
    wait_for_step(tmp_path / "nodes", int(found[1]) + 50, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    check_against_undisturbed(toy_dataset, tmp_path, joins_ray)
