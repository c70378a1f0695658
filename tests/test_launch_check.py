"""`launch check`: cluster files with mistakes, and a running cluster."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from ray.cluster_utils import Cluster
from rich.console import Console
from toy import REPOSITORY, drwr

from drwr_dist.errors import ClusterError, UsageError
from drwr_dist.launch import main
from drwr_dist.preflight.cluster_file import check_cluster_file
from drwr_dist.preflight.findings import Finding, failed, print_findings
from drwr_dist.preflight.probe import Probe

LOCAL, AWS, GCP = (REPOSITORY / "launch" / name for name in ("cluster.yaml", "aws.yaml", "gcp.yaml"))


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)  # file_mounts are relative to it


def findings_of(content: dict[str, Any]) -> list[Finding]:
    return check_cluster_file("FILE", content)


@pytest.mark.parametrize("path", [LOCAL, AWS, GCP], ids=lambda path: path.name)
def test_our_cluster_files_are_sound(path: Path):
    findings = findings_of(yaml.safe_load(path.read_text()))
    assert not failed(findings), [finding for finding in findings if finding.ok is False]


def set_key(content: dict[str, Any], key: str, value: Any) -> None:
    *groups, last = key.split("/")
    for group in groups:
        content = content[group]
    content[last] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_workers", "two", "max_workers: 'two' is not of type 'integer'"),
        ("setup_comands", [], "setup_comands"),
        ("provider/worker_ips", [], "provider.head_ip and provider.worker_ips are needed"),
        ("provider/worker_ips", ["192.0.2.10"], "stands twice"),
        ("file_mounts", {"~/.ray/auth_token": "~/.ray/auth_token", "~/x": "no_such_folder"}, "no no_such_folder here"),
        ("file_mounts", {}, "could not join"),
        ("auth", {"ssh_user": "ray"}, "ssh_private_key is missing"),
        ("head_start_ray_commands", ["ray start --head --node-ip-address=$X"], "--num-cpus=0 is missing"),
        ("worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP:6379"], "--node-ip-address is missing"),
        ("worker_start_ray_commands", ["echo --node-ip-address"], "ray start is missing"),
        ("worker_start_ray_commands", ["RAY_AUTH_MODE=disabled ray start --node-ip-address=$X"], "remove it"),
    ],
)
def test_a_mistake_in_a_cluster_file_is_named(key: str, value: Any, message: str):
    content = yaml.safe_load(LOCAL.read_text())
    set_key(content, key, value)
    reasons = [finding.reason for finding in findings_of(content) if finding.ok is False]
    assert any(message in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "cluster=FILE or address=auto is needed"),
        (["cluster=nowhere.yaml"], "nowhere.yaml: No such file"),
        (["cluster=launch/kuberay.yaml"], "kubectl apply --dry-run"),
        (["cluster=launch/aws.yaml", "storage=/tmp"], "give address=auto there"),
        (["hosts=true"], "cluster=FILE or address=auto is needed"),
        (["address=auto", "hosts=true"], "give cluster=FILE too"),
        (["cluster=launch/aws.yaml", "hosts=true"], "this file is for aws"),
        (["adress=auto"], "did you mean address?"),
    ],
)
def test_a_command_line_that_cannot_be_meant(arguments: list[str], message: str):
    with pytest.raises(UsageError, match=re.escape(message)):
        main(["check", *arguments])


def test_what_is_not_filled_in_yet_is_to_do(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert main(["check", f"cluster={LOCAL}"]) == 0
    told = capsys.readouterr().out
    assert "to do" in told and "these are the example's addresses" in told
    assert "programs here: rsync and ssh not installed on this machine" in told
    assert "hosts, running cluster: not checked" in told


def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = yaml.safe_load(LOCAL.read_text())
    content["provider"] |= {"head_ip": "127.0.0.2", "worker_ips": ["127.0.0.3"]}
    content["auth"] = {"ssh_user": "nobody", "ssh_private_key": str(LOCAL)}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    assert main(["check", f"cluster={tmp_path}/cluster.yaml", "hosts=true", "timeout=5"]) == 1
    told = capsys.readouterr().out
    assert told.count("FAILED") == 2 and "FAILED 127.0.0.2 (head): ssh: " in told and "FAILED 127.0.0.3: ssh: " in told


def test_hosts_are_asked_before_there_is_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    content = yaml.safe_load(LOCAL.read_text())
    content["provider"] |= {"head_ip": "127.0.0.2", "worker_ips": ["127.0.0.3"]}
    content["auth"] = {"ssh_user": "nobody", "ssh_private_key": str(LOCAL)}
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(content))
    command = ["check", f"cluster={tmp_path}/cluster.yaml", "timeout=5", "storage=/shared/runs"]
    assert main(command) == 1
    told = capsys.readouterr().out
    assert "token: there is no token here yet" in told and "FAILED 127.0.0.3: ssh: " in told
    assert "running cluster, storage: not checked, Ray does not run on the head" in told
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    main(command)
    assert "to do" in (told := capsys.readouterr().out) and "token: others on this machine can read it" in told
    token.chmod(0o600)
    main(command)
    assert "token ok" in capsys.readouterr().out


def test_what_was_looked_at_in_some_places_names_them(capsys: pytest.CaptureFixture[str]):
    found = [Finding("a", "ssh", True, "ok"), Finding("b", "ssh", True, "ok"), Finding("a", "ports", True, "free")]
    print_findings(Console(width=200), "hosts", found)
    assert capsys.readouterr().out == "hosts, all 2: ssh ok, ports free (a)\n"


def test_a_bad_file_fails_and_says_why():
    done = drwr("launch check", "cluster=configs/demo.yaml")
    assert done.returncode == 1 and not done.stderr
    assert "'cluster_name' is a required property" in done.stdout


def test_no_cluster_to_join_is_said_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(
        ClusterError, match=re.escape("address=127.0.0.1:9: no Ray cluster answers at 127.0.0.1:9 (connection refused)")
    ):
        main(["check", "address=127.0.0.1:9"])


def test_a_server_that_is_not_ray_is_told_from_a_cluster(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"127.0.0.1:{server.server_port}"
        with pytest.raises(ClusterError, match=re.escape(f"address={where}: what answers at {where} is not a Ray cl")):
            main(["check", f"address={where}"])
        server.shutdown()


def test_a_bucket_is_written_and_read_as_a_folder_is():
    probe, url = Probe(), "memory://bucket/runs"
    probe.write(url, "mine")
    assert probe.missing(url, ["mine"]) == []
    probe.remove(url, "mine")
    assert fsspec.filesystem("memory").find("bucket/runs") == []


@pytest.mark.slow
def test_a_running_cluster_node_by_node(toy_dataset: Path, tmp_path: Path):
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        running = f"address={cluster.address}"
        sound = drwr("launch check", running, f"storage={tmp_path}", f"data={toy_dataset}")
        assert sound.returncode == 0, sound.stdout + sound.stderr
        assert "nodes, all 3" in sound.stdout and "storage shared" in sound.stdout and "Mbit/s gloo" in sound.stdout
        assert not list(tmp_path.iterdir())  # nothing is left behind

        # Seen from where no process of Ray's is: as from a machine that is no node.
        elsewhere = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-m"]
        about = {"RAY_ADDRESS": cluster.address, "PYTHONPATH": str(REPOSITORY)}
        for line in (
            ["drwr_dist.launch", "check", running],
            ["drwr_dist.train", f"data={toy_dataset}", f"storage={tmp_path}/runs", "steps=1"],
            [
                "drwr_dist.evaluate",
                "run=pretrained",
                f"data={REPOSITORY}/shards/demo",
                "workers=2",
                f"output={tmp_path}/found",
            ],
        ):
            command = [*elsewhere, *line]
            lost = subprocess.run(command, env=os.environ | about, cwd=REPOSITORY, capture_output=True, text=True)
            assert lost.returncode in (1, 2) and "this machine is no node of the cluster" in lost.stderr, lost.stderr

        file = tmp_path / "file"
        file.touch()
        done = drwr(
            "launch check",
            running,
            f"storage={file}/folder",
            f"data={tmp_path}",
            "min_disk=1e9",
            "min_bandwidth=1e9",
            "expect=[192.0.2.7]",
            "wait=3",
            "package=0.0.1",
        )
        assert done.returncode == 1
        for message in (
            "storage: ",
            "can't be written",
            "shards: DataError: no index.json",
            "disk: ",
            "Mbit/s, 1000000000",
            "FAILED 192.0.2.7: answers: did not join Ray",
            "but 0.0.1 where this check was asked for",
        ):
            assert message in done.stdout, done.stdout
        assert done.stdout.count("FAILED") == 3 + 3 + 3 + 2 + 1 + 3
    finally:
        cluster.shutdown()
