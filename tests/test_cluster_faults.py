"""Nodes that leave: a real multi-node Ray cluster on this machine, whose raylets are killed."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from test_train import start, train, wait_for, wait_for_step
from toy import rows

from drwr_dist.monitor import read_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster():
    """A head without CPUs for training, and two nodes of one worker each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    cluster.shutdown()


# What does not depend on the number of steps: a run is stopped, and an undisturbed one trained as far.
SETTINGS = (
    "checkpoint.every=50", "log_every=10", "precision=float64", "evaluation.split=", "optimizer.schedule=constant",
    "loss.repulsion_weight_end=null",
)  # fmt: skip


def check_against_undisturbed(data: Path, storage: Path, joins_ray: str) -> None:
    step = int(rows(storage / "nodes")[-1]["step"])
    done = train(data, storage, "name=whole", "workers=1", f"steps={step}", *SETTINGS, joins_ray)
    assert done.returncode == 0, done.stderr
    one, other = rows(storage / "nodes"), rows(storage / "whole")
    assert [row["step"] for row in one] == [row["step"] for row in other]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-8)


def test_elastic_training_goes_on_with_the_node_that_is_left_and_takes_one_that_joins(
    cluster, toy_dataset: Path, tmp_path: Path, joins_ray: str
):
    """Ray looks once a minute for nodes that join; either way the group starts anew, on the same curve."""
    ray_cluster, nodes = cluster
    metrics = tmp_path / "nodes" / "metrics.jsonl"
    address = f"cluster.address={ray_cluster.address}"
    process = start(toy_dataset, tmp_path, "name=nodes", address, "workers=[1,2]", "steps=100000", *SETTINGS)
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
