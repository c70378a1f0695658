"""Faults that strike real runs: real workers, real signals, real disks. What each costs: benchmarks/faults.py."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster
from runs import start, train, wait_for, wait_for_step
from shard_tools import write_samples
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import rows

from drwr_dist import pool
from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.sample import split_members
from drwr_dist.data.stream import SampleTable
from drwr_dist.data.writer import EncodedSample
from drwr_dist.errors import DrwrError

pytestmark = pytest.mark.slow

MID_RUN = ("steps=100000", "checkpoint.every=20", "loader.cache_megabytes=0", "evaluation.split=")


def workers_of(driver: int) -> dict[int, int]:
    """Return rank -> process of the training workers below a driver, as their environment has it."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    entries = [line.split(None, 2) for line in table.splitlines()[1:]]
    family = {driver}
    for _ in range(6):
        family |= {int(pid) for pid, parent, *_ in entries if int(parent) in family}
    found = [int(pid) for pid, _, *args in entries if int(pid) in family and args and "RayTrainWorker" in args[0]]
    return dict(enumerate(sorted(found)))


def copy_with_a_poisoned_camera(data: Path, output: Path) -> str:
    """Copy the training split; one sample gets a camera so far away that float32 can't hold it. Return its key."""
    index = load_index(data)
    poisoned, samples = "", []
    for number, shard in index.split("train"):
        for position, key in enumerate(shard.keys):
            members = split_members(read_sample(index, number, position), key=key)
            if not poisoned:
                cameras, poisoned = json.loads(members["cameras.json"]), key
                for camera in cameras["world_to_camera"]:
                    camera[0][3] = camera[2][3] = 1e300
                members["cameras.json"] = json.dumps(cameras).encode()
            samples.append(EncodedSample(key, "train", members, "test", "CC0-1.0"))
    write_samples(output, samples, image_size=index.image_size, views=index.views)
    return poisoned


def test_a_loss_that_is_not_finite_on_one_rank_ends_all_at_the_same_step(
    toy_dataset: Path, tmp_path: Path, joins_ray: str
):
    key = copy_with_a_poisoned_camera(toy_dataset, tmp_path / "data")
    table = SampleTable.select(load_index(tmp_path / "data"), "train")
    plan = table.plan(0, 4)
    (step,) = [n for n, batch in enumerate(plan.epoch_batches(0)) if key in [table.keys[i] for i in batch]]
    settings = ("name=nan", "workers=2", "steps=50", "evaluation.split=", joins_ray)
    done = train(tmp_path / "data", tmp_path, *settings, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    found = re.search(
        r"step (\d+): the loss or its gradient is not finite on rank (\d) \(samples ([^)]*)\)", done.stderr
    )
    assert found and int(found[1]) == step and found[3] == key, done.stderr
    assert done.stderr.count("not finite") == 1, "the other rank has nothing to report"
    assert "no checkpoint yet" in done.stdout and "to go on:" in done.stdout  # what is left, and the command
    assert "-m drwr_dist.train" in done.stdout.splitlines()[-1] and "name=nan" in done.stdout.splitlines()[-1]
    history = tmp_path / "nan" / "metrics.jsonl"
    assert not history.exists() or all(row["step"] <= step for row in rows(tmp_path / "nan"))


def test_a_slow_rank_is_named_with_its_node_and_its_wait(toy_dataset: Path, tmp_path: Path):
    """One of two workers is stopped for half a second, again and again: as if its machine were overloaded."""
    process = start(toy_dataset, tmp_path, "name=slow", "workers=2", "log_every=5", *MID_RUN)
    wait_for_step(tmp_path / "slow", 20, process)
    victim = workers_of(process.pid)[1]
    for _ in range(40):
        os.kill(victim, signal.SIGSTOP)
        time.sleep(0.6)
        os.kill(victim, signal.SIGCONT)
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    found = re.search(r"straggler: rank \d on (\S+), process (\d+) lets the others wait (\d+\.\d+) s per step", out)
    assert found and found[1] == os.uname().nodename and int(found[2]) == victim, out
    assert max(row["straggler_seconds"] for row in rows(tmp_path / "slow")) >= 0.3


@pytest.mark.parametrize("damage", ["gone", "rotten"])
def test_a_shard_that_goes_bad_mid_run_fails_it_with_its_name(
    toy_dataset: Path, tmp_path: Path, damage: str, joins_ray: str
):
    data = tmp_path / "data"
    shutil.copytree(toy_dataset, data)
    shard = sorted(data.glob("train-*.tar"))[0]
    process = start(data, tmp_path, "name=bad", "workers=2", *MID_RUN, joins_ray)
    wait_for_step(tmp_path / "bad", 20, process)
    if damage == "gone":
        shard.unlink()
    else:
        content = bytearray(shard.read_bytes())
        content[::512] = bytes(byte ^ 1 for byte in content[::512])
        shard.write_bytes(content)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1 and shard.name in err and "Traceback" not in err, err
    assert ("missing" if damage == "gone" else "damaged") in err


def test_a_shard_that_goes_mid_run_is_skipped_and_counted(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    """How many may be skipped: test_train.py."""
    data = tmp_path / "data"
    shutil.copytree(toy_dataset, data)
    shard = sorted(data.glob("train-*.tar"))[0]
    skip = (joins_ray, "data.on_bad_sample=skip", "data.max_skip_fraction=0.9")
    process = start(data, tmp_path, "name=bad", "workers=2", *MID_RUN, *skip)
    wait_for_step(tmp_path / "bad", 20, process)
    shard.unlink()
    wait_for(lambda: rows(tmp_path / "bad")[-1]["skipped"] >= 8, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 130, err
    assert f"skipping samples of {shard.name}" in out
    step = int(rows(tmp_path / "bad")[-1]["step"])
    done = train(data, tmp_path, "name=bad", "workers=1", *MID_RUN[1:], *skip, f"steps={step + 6}")
    assert done.returncode == 0, done.stderr
    total = int(rows(tmp_path / "bad")[-1]["skipped"])
    assert f"{total} damaged samples were skipped (data.on_bad_sample=skip): {shard.name}: {total}" in done.stdout
    events = EventAccumulator(str(tmp_path / "bad" / "tensorboard"))
    events.Reload()
    assert events.Scalars(f"data/skipped/{shard.name}")[-1].value == total


def test_a_full_disk_ends_the_run_and_loses_nothing(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        process = start(toy_dataset, disk, "name=full", "workers=2", *MID_RUN, joins_ray)
        wait_for_step(disk / "full", 20, process)
        with (disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="No space"):
            while True:
                ballast.write(bytes(4096))
        _, err = process.communicate(timeout=200)
        assert process.returncode == 1 and "No space left" in err and "Traceback" not in err, err
        kept = sorted(path.name for path in (disk / "full" / "checkpoints").glob("step-*"))
        assert kept
        (disk / "ballast").unlink()
        step = int(kept[-1].removeprefix("step-"))
        done = train(toy_dataset, disk, "name=full", "workers=2", *MID_RUN[1:], f"steps={step + 5}", joins_ray)
        assert done.returncode == 0 and f"resuming after step {step}" in done.stdout, done.stderr
        assert [row["step"] for row in rows(disk / "full")] == list(range(1, step + 6))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_too_small_a_cluster_is_not_waited_for_forever(toy_dataset: Path, tmp_path: Path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        done = train(
            toy_dataset, tmp_path, "name=small", f"cluster.address={cluster.address}", "workers=3", "steps=5",
            "cluster.start_timeout=25",
        )  # fmt: skip
    finally:
        cluster.shutdown()
    assert done.returncode == 1, done.stdout
    assert "no workers yet after" in done.stdout and "CPU 1 (1 free)" in done.stdout
    assert "cluster.start_timeout" in done.stderr and "3 worker(s) of CPU 1 each" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_tasks_do_not_wait_forever_for_a_cluster_without_cpus(monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(pool, "_WITHOUT_CPU", 2.0)
    try:
        with pytest.raises(DrwrError, match="no CPU to run a task on"):
            list(pool.run_ordered(os.path.basename, ["a", "bc"], pool.Crew(2, "ray")))
    finally:
        cluster.shutdown()


def test_a_folder_that_the_nodes_do_not_share_is_refused(toy_dataset: Path, tmp_path: Path):
    """The second node sees another, empty file system at the place of the run: as two machines without NFS would."""
    private = tmp_path / "runs"
    private.mkdir()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray = Path(sys.executable).with_name("ray")
    join = f"{ray} start --address={cluster.address} --num-cpus=1 --block"
    shell = f"mount -t tmpfs tmpfs {private} && exec {join}"
    other = subprocess.Popen(["unshare", "--mount", "sh", "-c", shell], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        time.sleep(3)
        if other.poll() is not None:
            pytest.skip(f"a mount namespace needs root: {other.communicate()}")
        cluster.wait_for_nodes()
        wait_for(lambda: len(cluster.list_all_nodes()) >= 1 and _nodes(cluster.address) == 2, timeout=60)
        done = train(toy_dataset, private, "name=lonely", f"cluster.address={cluster.address}", "workers=2", "steps=5")
    finally:
        other.terminate()
        cluster.shutdown()
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert f"storage={private / 'lonely'}: the node" in done.stderr and "s3://" in done.stderr
    assert "starting workers" not in done.stdout


def _nodes(address: str) -> int:
    """Count the living nodes of a cluster, asked from a process of its own."""
    code = f"import ray; ray.init('{address}', logging_level=40); print(sum(node['Alive'] for node in ray.nodes()))"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return int(asked.stdout.split()[-1]) if asked.returncode == 0 else 0
