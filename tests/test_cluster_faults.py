"""Nodes that leave: a real multi-node Ray cluster on this machine, whose raylets are killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from runs import OF_ANY_LENGTH, check_against_undisturbed, start, wait_for, wait_for_step
from toy import rows

from drwr_dist.monitor import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def test_elastic_training_goes_on_with_the_node_that_is_left_and_takes_one_that_joins(
    cluster, toy_dataset: Path, tmp_path: Path, joins_ray: str
):
    """Ray looks once a minute for nodes that join; either way the group starts anew, on the same curve."""
    ray_cluster, nodes = cluster
    metrics = tmp_path / "nodes" / "metrics.jsonl"
    address = f"cluster.address={ray_cluster.address}"
    process = start(toy_dataset, tmp_path, "name=nodes", address, "workers=[1,2]", "steps=100000", *OF_ANY_LENGTH)
    wait_for_step(tmp_path / "nodes", 50, process)
    assert {row["workers"] for row in rows(tmp_path / "nodes")} == {2}
    ray_cluster.remove_node(nodes[1], allow_graceful=False)
    wait_for(lambda: read_rows(metrics)[-1]["workers"] == 1, process, timeout=240)
    ray_cluster.add_node(num_cpus=1)
    wait_for(lambda: read_rows(metrics)[-1]["workers"] == 2, process, timeout=240)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert out.count("resuming after step") == 2 and "1 of at most 2 worker(s), on " in out
    check_against_undisturbed(toy_dataset, tmp_path, joins_ray)
