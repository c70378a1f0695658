"""Nodes that leave: a real multi-node Ray cluster on this machine, whose raylets are killed."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from test_train import start, wait_for, wait_for_step
from toy import REPOSITORY, SMALL_RUN, command, drwr, rows

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


def run_and_lose_a_node(cluster: Cluster, node: object, data: Path, storage: Path, *arguments: str) -> str:
    line = command(
        "train", f"data={data}", f"storage={storage}", "name=nodes", f"cluster.address={cluster.address}", *SMALL_RUN,
        *arguments,
    )  # fmt: skip
    process = subprocess.Popen(line, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_for_step(storage / "nodes", 50, process)
    cluster.remove_node(node, allow_graceful=False)
    out, err = process.communicate(timeout=420)
    assert process.returncode == 0, err
    return out


def check_against_undisturbed(data: Path, storage: Path, settings: tuple[str, ...]) -> None:
    done = drwr("train", f"data={data}", f"storage={storage}", "name=whole", "workers=1", *SMALL_RUN, *settings)
    assert done.returncode == 0, done.stderr
    one, other = rows(storage / "nodes"), rows(storage / "whole")
    assert [row["step"] for row in one] == [row["step"] for row in other]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-8)


SETTINGS = ("steps=600", "checkpoint.every=50", "log_every=10", "precision=float64", "evaluation.split=")


def test_elastic_training_goes_on_with_the_node_that_is_left(cluster, toy_dataset: Path, tmp_path: Path):
    ray_cluster, nodes = cluster
    out = run_and_lose_a_node(ray_cluster, nodes[1], toy_dataset, tmp_path, "workers=[1,2]", *SETTINGS)
    assert "resuming after step" in out
    assert "1 of at most 2 worker(s), on " in out
    check_against_undisturbed(toy_dataset, tmp_path, SETTINGS)


def test_a_replacement_takes_the_place_of_a_lost_node(cluster, toy_dataset: Path, tmp_path: Path):
    ray_cluster, nodes = cluster
    settings = (*SETTINGS[1:], "optimizer.schedule=constant", "loss.repulsion_weight_end=null")
    address = f"cluster.address={ray_cluster.address}"
    process = start(toy_dataset, tmp_path, "name=nodes", address, "workers=2", "steps=100000", *settings)
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
    step = int(rows(tmp_path / "nodes")[-1]["step"])
    check_against_undisturbed(toy_dataset, tmp_path, (f"steps={step}", *settings))


def test_a_node_that_joins_takes_a_worker(toy_dataset: Path, tmp_path: Path):
    """Ray looks once a minute; the group starts anew from a checkpoint, with two workers, on the same curve."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        settings = (*SETTINGS[1:], "optimizer.schedule=constant", "loss.repulsion_weight_end=null")
        address = f"cluster.address={cluster.address}"
        process = start(toy_dataset, tmp_path, "name=nodes", address, "workers=[1,2]", "steps=100000", *settings)
        wait_for_step(tmp_path / "nodes", 50, process)
        assert {row["workers"] for row in rows(tmp_path / "nodes")} == {1}
        cluster.add_node(num_cpus=1)
        wait_for(lambda: read_rows(tmp_path / "nodes" / "metrics.jsonl")[-1]["workers"] == 2, process, timeout=240)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=200)
        assert process.returncode == 130, err
    finally:
        cluster.shutdown()
    step = int(rows(tmp_path / "nodes")[-1]["step"])
    check_against_undisturbed(toy_dataset, tmp_path, (f"steps={step}", *settings))
