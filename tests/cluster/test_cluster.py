"""The whole way on real hosts: bring a cluster up, train on it, break it, take it down. Run by `make test-cluster`.

The tests build on each other, in this order, on one cluster.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator

import pytest
import torch
import yaml
from cluster import CLUSTER_FILE, PATIENCE, WRONG_TOKEN, Cluster, history, steps, wait
from lab import HOME, SHARED, Lab, missing
from mishaps import another_torch, listeners, listening, without_rsync
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import SMALL_RUN, make_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * PATIENCE),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

RUNS = SHARED / "runs"
SERVER_PORT = 8000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The hosts, with the shards served by the operator's host; `ray up` is the first test's."""
    folder = tmp_path_factory.mktemp("cluster")
    dataset = make_dataset(folder, categories={"brick": 9, "slab": 9})
    with Lab(folder, workers=3) as lab:
        cluster = Cluster(lab)
        cluster.prepare()
        shutil.copytree(dataset, lab.operator.path("/tmp/data"))
        line = f"python tests/cluster/serve_shards.py /tmp/data {lab.operator.ip} {SERVER_PORT}"
        lab.operator.start(line, folder / "server.log")
        yield cluster


def data(cluster: Cluster) -> str:
    return f"data=http://{cluster.operator.ip}:{SERVER_PORT}"


def small_run(cluster: Cluster, name: str) -> list[str]:
    return [data(cluster), f"storage={RUNS}", f"name={name}", *SMALL_RUN, "cluster.timeout=30"]


def test_the_check_of_the_hosts_finds_them_ready(cluster: Cluster) -> None:
    done = cluster.check()
    assert done.returncode == 0, done.stdout
    assert "hosts, all 4: ssh ok, rsync ok" in done.stdout and "Ray does not run on the head" in done.stdout


def test_the_check_names_what_the_hosts_lack(cluster: Cluster) -> None:
    """A worker without rsync, one with another token, a head on which something else listens at a port of Ray's."""
    head, bare, odd, _ = cluster.hosts
    odd.path(f"{HOME}/.ray").mkdir()
    odd.path(f"{HOME}/.ray/auth_token").write_text(WRONG_TOKEN)
    with without_rsync(bare), listening(head, "127.0.0.1", 6379):
        done = cluster.check()
    assert done.returncode == 1 and done.stdout.count("FAILED") == 2, done.stdout
    assert f"FAILED {bare.ip}: rsync: not installed" in done.stdout
    assert f"to do {odd.ip}: token: ~/.ray/auth_token is another one than on this machine" in done.stdout
    assert f"FAILED {head.ip} (head): ports: port 6379 (Ray's control store) is taken by something" in done.stdout


def test_ray_up_starts_ray_on_every_host(cluster: Cluster) -> None:
    cluster.up()


def test_every_host_has_the_package_and_the_token(cluster: Cluster) -> None:
    token = cluster.operate("cat ~/.ray/auth_token").stdout
    for host in cluster.hosts:
        found = host.run("cd / && python -c 'import drwr_dist; print(drwr_dist.__file__)'").stdout
        assert "/home/ray/drwr-dist/" in found, f"{host.name}: {found}"
        assert host.run("cat ~/.ray/auth_token").stdout == token
        assert host.run("stat -c %a ~/.ray/auth_token").stdout.strip() == "600"


def test_nothing_that_can_be_bound_listens_on_all_interfaces(cluster: Cluster) -> None:
    """What docs/security.md says of the ports that we choose; it names the others too."""
    board = cluster.operator.start("tensorboard --logdir /tmp --port 6006", cluster.lab.folder.parent / "board.log")
    wait(lambda: "6006" in listeners(cluster.operator), lambda: "TensorBoard to listen")
    board.terminate()
    expected = {
        cluster.operator: {"22": cluster.operator.ip, "6006": "127.0.0.1"},
        cluster.lab.head: dict.fromkeys(("22", "8265", "10001", "52365"), cluster.lab.head.ip),
        **{host: dict.fromkeys(("22", "52365"), host.ip) for host in cluster.workers},
    }
    for host, ports in expected.items():
        found = listeners(host)
        for port, address in ports.items():
            assert address in found[port] and found[port] <= {address, "127.0.0.1"}, f"{host.name} {port}: {found}"


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


def test_the_check_of_the_running_cluster_from_outside(cluster: Cluster) -> None:
    done = cluster.check(data(cluster), f"storage={RUNS}")
    assert done.returncode == 0, done.stdout
    assert "token ours" in done.stdout and "nodes, all 4" in done.stdout, done.stdout
    assert "storage shared" in done.stdout and "shards 4 read" in done.stdout and "Mbit/s gloo" in done.stdout


def test_another_torch_and_a_folder_that_is_not_shared_are_named(cluster: Cluster) -> None:
    odd = cluster.workers[1]
    with another_torch(odd, "2.6.0"):
        checked = cluster.check("storage=/tmp/runs")
        trained = cluster.submit("launch/train.py", "config=configs/demo.yaml", *small_run(cluster, "odd"), "workers=2")
    assert checked.returncode == 1
    assert f"FAILED {odd.name} {odd.ip}: torch: 2.6.0, but {torch.__version__}" in checked.stdout, checked.stdout
    assert "it must be one folder that all nodes share" in checked.stdout
    assert checked.stdout.count("FAILED") == 1 + 4 + 1  # the last line says so for the head's check
    assert trained.returncode != 0 and f"error: cluster.address: the node {odd.ip}" in trained.stdout, trained.stdout
    assert f"has torch 2.6.0, and this machine {torch.__version__}; install the same" in trained.stdout


@pytest.mark.parametrize("token", ["", WRONG_TOKEN])
def test_without_the_token_nobody_submits_or_reads(cluster: Cluster, token: str) -> None:
    submitted = cluster.intrude(f"ray job submit --address {cluster.dashboard} -- touch /tmp/intruded", token=token)
    assert submitted.returncode != 0 and "uthenticat" in submitted.stdout, submitted.stdout
    header = f'-H "Authorization: Bearer {token}"' if token else ""
    for path in ("/api/jobs/", "/api/version", "/nodes?view=summary", "/api/v0/tasks", "/api/v0/logs"):
        code = cluster.intrude(f"curl -s -o /dev/null -w '%{{http_code}}' {header} '{cluster.dashboard}{path}'").stdout
        assert code == ("403" if token else "401"), f"{path}: {code}"
    agent = f"http://{cluster.workers[0].ip}:52365/api/job_agent/jobs/"
    body = '{"entrypoint": "touch /tmp/intruded"}'
    posted = cluster.intrude(
        f"curl -s -w '%{{http_code}}' {header} -H 'Content-Type: application/json' -d '{body}' {agent}"
    )
    assert posted.stdout.endswith(("401", "403")), posted.stdout
    for mode in ("disabled", "token"):
        status = cluster.intrude(f"timeout 300 ray status --address {cluster.lab.head.ip}:6379", mode, token)
        assert status.returncode != 0 and "uthenticat" in status.stdout, status.stdout
    for host in cluster.hosts:
        assert not host.path("/tmp/intruded").exists()


def test_a_wrong_token_is_told_in_one_line(cluster: Cluster) -> None:
    """Ray itself goes on trying for minutes; `train` asks by the same function."""
    head = cluster.lab.head.ip
    done = cluster.intrude(f"timeout 300 python -m drwr_dist.launch check address={head}:6379", token=WRONG_TOKEN)
    assert done.returncode == 1 and len(done.stdout.splitlines()) == 1, done.stdout
    assert done.stdout.startswith(f"error: address={head}:6379: the cluster at {head}:6379 asks for another token")
    done = cluster.intrude(f"launch/start.sh worker {head}", token=WRONG_TOKEN)
    assert done.returncode == 1, done.stdout
    assert done.stdout == "start: the head refuses this host's token; copy ~/.ray/auth_token from the head\n"


class Training:
    """An elastic training that runs for as long as the tests disturb it."""

    def __init__(self, cluster: Cluster):
        self.cluster = cluster
        self.run = cluster.operator.path(RUNS / "faults")
        settings = ["workers=[1,3]", "steps=1000000", "checkpoint.every=20", "model.points=512", "global_batch=12"]
        done = cluster.job(
            "python", "-m", "drwr_dist.train", *small_run(cluster, "faults"), *settings, "evaluation.split=",
            options="--no-wait --submission-id faults",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout

    def workers(self) -> int:
        """Return how many workers the last step had."""
        return int(history(self.run)[-1]["workers"])

    def step(self) -> int:
        return max(steps(self.run), default=0)

    def wait_for_steps(self, count: int) -> float:
        """Wait until `count` more steps are done."""
        target = self.step() + count
        return wait(lambda: self.step() >= target, lambda: f"step {target}; the job says:\n{self.log()[-3000:]}")

    def log(self) -> str:
        return self.cluster.operate(f"ray job logs --address {self.cluster.dashboard} faults").stdout

    def restarts(self) -> int:
        return self.log().count("resuming after step")


@pytest.fixture(scope="module")
def training(cluster: Cluster) -> Training:
    return Training(cluster)


def test_a_link_that_is_cut_for_8_seconds_stops_nothing(cluster: Cluster, training: Training) -> None:
    training.wait_for_steps(60)
    assert training.workers() == 3
    cluster.workers[1].link("down")
    time.sleep(8)
    cluster.workers[1].link("up")
    print(f"steps again {training.wait_for_steps(5):.0f} s after the link was up")
    assert training.restarts() == 0


def test_a_link_that_is_cut_for_75_seconds(cluster: Cluster, training: Training) -> None:
    cluster.workers[1].link("down")
    time.sleep(75)
    cluster.workers[1].link("up")
    print(f"steps again {training.wait_for_steps(20):.0f} s after the link was up")
    back = cluster.wait_for_hosts(cluster.hosts)
    print(f"the host was back {back:.0f} s later")
    assert training.restarts() >= 1


def test_a_worker_that_loses_power(cluster: Cluster, training: Training) -> None:
    cluster.workers[0].power_off()
    cluster.wait_for_hosts([cluster.lab.head, *cluster.workers[1:]])
    print(f"steps again {training.wait_for_steps(20):.0f} s after the host was given up")
    cluster.workers[0].power_on()
    back = cluster.wait_for_hosts(cluster.hosts)
    print(f"the host was back {back:.0f} s after power-on")
    training.wait_for_steps(20)


def test_the_disturbed_history_is_whole(cluster: Cluster, training: Training) -> None:
    stopped = cluster.operate(f"ray job stop --address {cluster.dashboard} faults")
    assert stopped.returncode == 0, stopped.stdout
    done = steps(training.run)
    assert done == list(range(1, len(done) + 1))
    assert {row["workers"] for row in history(training.run)} > {3}, "it never went on with fewer"
    assert sorted((training.run / "checkpoints").iterdir())


def sweep_of(cluster: Cluster, name: str, rates: list[float]) -> list[str]:
    """Write the settings of a small sweep where the head finds them; return what names it on the command line."""
    space = {"optimizer.learning_rate": {"type": "choice", "values": rates}}
    sweep = {"categories": ["brick"], "search": "grid", "scheduler": "none", "space": space}
    settings = SHARED / f"{name}.yaml"
    cluster.operator.path(settings).write_text(yaml.safe_dump({"workers": 1, "steps": 10, "sweep": sweep}))
    return [f"config={settings}", *small_run(cluster, name)]


def test_submit_sweeps(cluster: Cluster) -> None:
    done = cluster.submit("launch/tune.py", *sweep_of(cluster, "sweep", [1e-3, 1e-4]))
    assert done.returncode == 0, done.stdout
    assert (cluster.operator.path(RUNS / "sweep") / "leaderboard.csv").exists(), done.stdout


def test_a_job_sweeps(cluster: Cluster) -> None:
    """`ray job submit` runs the package that the head has, without the scripts of launch/."""
    done = cluster.job("python", "-m", "drwr_dist.tune", *sweep_of(cluster, "job", [1e-3]))
    assert done.returncode == 0, done.stdout
    assert (cluster.operator.path(RUNS / "job") / "leaderboard.csv").exists(), done.stdout


def test_ray_down_stops_ray_on_every_host(cluster: Cluster) -> None:
    done = cluster.operate(f"ray down -y {CLUSTER_FILE}")
    assert done.returncode == 0, done.stdout
    for host in cluster.hosts:
        wait(lambda: not host.run("pgrep -x raylet").stdout, lambda: f"Ray to end on {host.name}")  # noqa: B023
