"""The whole way on real hosts: bring a cluster up, train on it, break it, take it down. Run by `make test-cluster`.

The tests build on each other, in this order, on one cluster.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from cluster import CLUSTER_FILE, WRONG_TOKEN, Cluster, steps, wait
from lab import REPOSITORY, SHARED, Lab, missing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import SMALL_RUN, make_dataset

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

RUNS = SHARED / "runs"
SERVER_PORT = 8000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The hosts, with the shards served by the operator's host; `ray up` is the first test's."""
    folder = tmp_path_factory.mktemp("cluster")
    dataset = make_dataset(folder, categories={"brick": 9, "slab": 9})
    with Lab(folder) as lab:
        cluster = Cluster(lab)
        cluster.prepare()
        shutil.copytree(dataset, lab.operator.path("/tmp/data"))
        line = f"python tests/cluster/serve_shards.py /tmp/data {lab.operator.ip} {SERVER_PORT}"
        lab.operator.start(line, folder / "server.log")
        yield cluster


def data(cluster: Cluster) -> str:
    return f"data=http://{cluster.operator.ip}:{SERVER_PORT}"


def small_run(cluster: Cluster, name: str) -> list[str]:
    return [data(cluster), f"storage={RUNS}", f"name={name}", *SMALL_RUN, "cluster.timeout=20"]


def test_the_check_of_the_hosts_finds_them_ready(cluster: Cluster) -> None:
    done = cluster.operate(f"python -m drwr_dist.launch check cluster={CLUSTER_FILE} hosts=true")
    assert done.returncode == 0 and "ssh ok, rsync ok" in done.stdout, done.stdout


def test_ray_up_starts_ray_on_every_host(cluster: Cluster) -> None:
    done = cluster.operate(f"ray up -y --no-config-cache {CLUSTER_FILE}", timeout=180)
    assert done.returncode == 0, done.stdout
    cluster.wait_for_hosts([cluster.lab.head, *cluster.lab.workers], timeout=120)


def test_every_host_has_the_package_and_the_token(cluster: Cluster) -> None:
    token = cluster.operate("cat ~/.ray/auth_token").stdout
    for host in (cluster.lab.head, *cluster.lab.workers):
        found = host.run("cd / && python -c 'import drwr_dist; print(drwr_dist.__file__)'").stdout
        assert "/home/ray/drwr-dist/" in found, f"{host.name}: {found}"
        assert host.run("cat ~/.ray/auth_token").stdout == token
        assert host.run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"


def test_submit_trains_with_a_worker_on_each_host(cluster: Cluster) -> None:
    done = cluster.submit(
        "launch/train.py", "config=configs/demo.yaml", *small_run(cluster, "plain"), "workers=2", "steps=20",
        "data.mirror=false", "evaluation.references=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    run = cluster.operator.path(RUNS / "plain")
    assert steps(run) == list(range(1, 21))
    assert json.loads((run / "result.json").read_text())["step"] == 20
    assert (run / "checkpoints" / "step-00000020" / "state.pt").exists()
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, 21))


CHECK = ("python", "-m", "drwr_dist.launch", "check", "address=auto")


def test_a_submitted_job_checks_the_cluster(cluster: Cluster) -> None:
    done = cluster.job(*CHECK, data(cluster), f"storage={RUNS}")
    assert done.returncode == 0, done.stdout
    assert "nodes, all 3" in done.stdout and "storage shared" in done.stdout and "Mbit/s gloo" in done.stdout


def test_the_check_finds_another_torch_and_a_folder_that_is_not_shared(cluster: Cluster) -> None:
    odd = cluster.lab.workers[1]
    version = odd.path(Path(torch.__file__).parent / "version.py")
    before = version.read_text()
    version.write_text(before.replace(f"__version__ = '{torch.__version__}'", "__version__ = '2.6.0'"))
    done = cluster.execute(" ".join([*CHECK, "storage=/tmp/runs"]))
    version.write_text(before)
    assert done.returncode != 0
    assert f"FAILED {odd.name} {odd.ip}: torch: 2.6.0, but {torch.__version__}" in done.stdout, done.stdout
    assert "it must be one folder that all nodes share" in done.stdout
    assert done.stdout.count("FAILED") == 1 + 3


@pytest.mark.parametrize("token", ["", WRONG_TOKEN])
def test_without_the_token_nobody_submits_or_reads(cluster: Cluster, token: str) -> None:
    submitted = cluster.intrude(f"ray job submit --address {cluster.dashboard} -- touch /tmp/intruded", token=token)
    assert submitted.returncode != 0 and "uthenticat" in submitted.stdout, submitted.stdout
    header = f'-H "Authorization: Bearer {token}"' if token else ""
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/tasks", "/api/v0/logs"):
        code = cluster.intrude(f"curl -s -o /dev/null -w '%{{http_code}}' {header} '{cluster.dashboard}{path}'").stdout
        assert code == ("403" if token else "401"), f"{path}: {code}"
    agent = f"http://{cluster.lab.workers[0].ip}:52365/api/job_agent/jobs/"
    body = '{"entrypoint": "touch /tmp/intruded"}'
    posted = cluster.intrude(
        f"curl -s -w '%{{http_code}}' {header} -H 'Content-Type: application/json' -d '{body}' {agent}"
    )
    assert posted.stdout.endswith(("401", "403")), posted.stdout
    for mode in ("disabled", "token"):
        status = cluster.intrude(f"timeout 60 ray status --address {cluster.lab.head.ip}:6379", mode, token)
        assert status.returncode != 0 and "uthenticat" in status.stdout, status.stdout
    for host in (cluster.lab.head, *cluster.lab.workers):
        assert not host.path("/tmp/intruded").exists()


class Training:
    """An elastic training that runs for as long as the tests disturb it."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.run = cluster.operator.path(RUNS / "faults")
        settings = ["workers=[1,2]", "steps=1000000", "checkpoint.every=20", "model.points=512", "global_batch=12"]
        done = cluster.job(
            "python", "-m", "drwr_dist.train", *small_run(cluster, "faults"), *settings, "evaluation.split=",
            options="--no-wait --submission-id faults",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def step(self) -> int:
        return max(steps(self.run), default=0)

    def wait_for_steps(self, count: int, timeout: float) -> float:
        """Wait until `count` more steps are done."""
        target = self.step() + count
        return wait(lambda: self.step() >= target, timeout, f"step {target}; the job says:\n{self.log()[-3000:]}")

    def log(self) -> str:
        return self.cluster.operate(f"ray job logs --address {self.cluster.dashboard} faults").stdout

    def restarts(self) -> int:
        return self.log().count("resuming after step")


@pytest.fixture(scope="module")
def training(cluster: Cluster) -> Training:
    return Training(cluster)


def test_a_link_that_is_cut_for_8_seconds_stops_nothing(cluster: Cluster, training: Training) -> None:
    training.wait_for_steps(60, timeout=120)
    cluster.lab.workers[1].link("down")
    time.sleep(8)
    cluster.lab.workers[1].link("up")
    print(f"steps again {training.wait_for_steps(5, timeout=60):.0f} s after the link was up")
    assert training.restarts() == 0


def test_a_link_that_is_cut_for_75_seconds(cluster: Cluster, training: Training) -> None:
    cluster.lab.workers[1].link("down")
    time.sleep(75)
    cluster.lab.workers[1].link("up")
    print(f"steps again {training.wait_for_steps(20, timeout=180):.0f} s after the link was up")
    back = cluster.wait_for_hosts([cluster.lab.head, *cluster.lab.workers], timeout=120)
    print(f"the host was back {back:.0f} s later")
    assert training.restarts() >= 1


def test_a_worker_that_loses_power(cluster: Cluster, training: Training) -> None:
    cluster.lab.workers[0].power_off()
    cluster.wait_for_hosts([cluster.lab.head, cluster.lab.workers[1]], timeout=90)
    print(f"steps again {training.wait_for_steps(20, timeout=180):.0f} s after the host was given up")
    cluster.lab.workers[0].power_on()
    back = cluster.wait_for_hosts([cluster.lab.head, *cluster.lab.workers], timeout=180)
    print(f"the host was back {back:.0f} s after power-on")
    training.wait_for_steps(20, timeout=180)


def test_the_disturbed_history_is_whole(cluster: Cluster, training: Training) -> None:
    stopped = cluster.operate(f"ray job stop --address {cluster.dashboard} faults", timeout=60)
    assert stopped.returncode == 0, stopped.stdout
    history = steps(training.run)
    assert history == list(range(1, len(history) + 1))
    assert sorted((training.run / "checkpoints").iterdir())


@pytest.mark.skipif(not (REPOSITORY / "launch" / "tune.py").exists(), reason="there are no sweeps yet")
def test_submit_sweeps(cluster: Cluster) -> None:
    space = {"optimizer.learning_rate": {"type": "choice", "values": [1e-3, 1e-4]}}
    sweep = {"categories": ["brick"], "search": "grid", "scheduler": "none", "space": space}
    settings = yaml.safe_dump({"workers": 1, "steps": 10, "sweep": sweep})
    cluster.operator.path(SHARED / "sweep.yaml").write_text(settings)
    done = cluster.submit("launch/tune.py", f"config={SHARED / 'sweep.yaml'}", *small_run(cluster, "sweep"))
    assert done.returncode == 0, done.stdout
    assert (cluster.operator.path(RUNS / "sweep") / "leaderboard.csv").exists(), done.stdout


def test_ray_down_stops_ray_on_every_host(cluster: Cluster) -> None:
    done = cluster.operate(f"ray down -y {CLUSTER_FILE}", timeout=120)
    assert done.returncode == 0, done.stdout
    for host in (cluster.lab.head, *cluster.lab.workers):
        wait(lambda: "raylet" not in host.run("ps -eo args").stdout, 150, f"Ray to end on {host.name}")  # noqa: B023
