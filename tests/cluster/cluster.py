"""A Ray cluster in the lab, brought up with `ray up launch/cluster.yaml`, and what the operator does with it."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from lab import HOME, REPOSITORY, VENV, Host, Lab

CLUSTER_FILE = "/tmp/cluster.yaml"  # on the operator: launch/cluster.yaml with the lab's addresses
WRONG_TOKEN = "0" * 64

# What a site sets for its hosts: here, an environment that has all packages but ours, and no internet. One CPU each,
# so that two workers can't share a host. Ray's own workers are nice (15) by default and would starve where anything
# else computes beside the test.
HOST_SETTINGS = f"""
DRWR_VENV={VENV}
DRWR_PIP_OPTIONS="--no-index --no-build-isolation --no-deps"
DRWR_RAY_OPTIONS="--num-cpus=1 --memory=3000000000"
export RAY_worker_niceness=0
"""

# Seconds after which something has failed. Long, for a machine that is busy with other work: what is right takes a
# fraction of them, and only what is wrong takes all.
PATIENCE = 600


class Cluster:
    """The operator's view of the cluster."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.operator, self.workers = lab.operator, lab.workers
        self.dashboard = f"http://{lab.head.ip}:8265"

    def prepare(self) -> None:
        """Do what launch/README.md asks for beforehand: a key, a token, the hosts' own settings, the addresses."""
        for host in self.hosts:
            host.path(f"{HOME}/.drwr_host.sh").write_text(HOST_SETTINGS)
        content = yaml.safe_load((REPOSITORY / "launch" / "cluster.yaml").read_text())
        content["provider"] |= {"head_ip": self.lab.head.ip, "worker_ips": [host.ip for host in self.workers]}
        content["auth"]["ssh_user"] = "root"
        self.operator.path(CLUSTER_FILE).write_text(yaml.safe_dump(content, sort_keys=False))
        assert self.operate("ray get-auth-token --generate").returncode == 0

    @property
    def hosts(self) -> list[Host]:
        """The head and the workers."""
        return [self.lab.head, *self.workers]

    def up(self) -> None:
        """Run `ray up` and wait until every host is in the cluster."""
        done = self.operate(f"ray up -y --no-config-cache {CLUSTER_FILE}")
        assert done.returncode == 0, done.stdout
        self.wait_for_hosts(self.hosts)

    def check(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `launch check cluster=launch/cluster.yaml arguments` on the operator's host."""
        return self.operate(
            f"python -m drwr_dist.launch check cluster={CLUSTER_FILE} timeout={PATIENCE // 3} {' '.join(arguments)}"
        )

    def operate(self, line: str, timeout: float = PATIENCE, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a line on the operator's host, with the token."""
        return self.operator.run(line, timeout, RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0", **environment)

    def intrude(self, line: str, mode: str = "token", token: str = "") -> subprocess.CompletedProcess[str]:
        """Run a line on the operator's host as somebody who has no token, or a wrong one."""
        stranger = f"mkdir -p /tmp/stranger && export HOME=/tmp/stranger RAY_AUTH_MODE={mode} && {line}"
        return self.operator.run(stranger, **({"RAY_AUTH_TOKEN": token} if token else {}))

    def submit(self, script: str, *arguments: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run `ray submit launch/cluster.yaml SCRIPT -- arguments`."""
        return self.operate(f"ray submit {CLUSTER_FILE} {script} -- {' '.join(arguments)}", timeout)

    def execute(self, line: str, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run `ray exec launch/cluster.yaml LINE`: a line on the head."""
        return self.operate(f"ray exec {CLUSTER_FILE} {shlex.quote(line)}", timeout)

    def job(self, *command: str, options: str = "", timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        """Run `ray job submit … -- command`."""
        return self.operate(
            f"ray job submit --address {self.dashboard} {options} -- {' '.join(command)}", timeout, COLUMNS="200"
        )

    def alive(self) -> set[str]:
        """Return the addresses of the hosts that Ray counts as alive."""
        done = self.operate(
            f'curl -s -m 10 -H "Authorization: Bearer $(cat ~/.ray/auth_token)" {self.dashboard}/api/v0/nodes'
        )
        try:
            nodes: list[dict[str, Any]] = json.loads(done.stdout)["data"]["result"]["result"]
        except (ValueError, KeyError, TypeError):
            return set()
        return {node["node_ip"] for node in nodes if node["state"] == "ALIVE"}

    def wait_for_hosts(self, hosts: list[Host], timeout: float = PATIENCE) -> float:
        """Wait until exactly these hosts are alive; return the seconds it took."""
        wanted = {host.ip for host in hosts}
        return wait(
            lambda: self.alive() == wanted, lambda: f"{sorted(wanted)} to be alive; {sorted(self.alive())} are", timeout
        )


def wait(condition: Callable[[], bool], what: Callable[[], str], timeout: float = PATIENCE) -> float:
    """Wait until a condition holds; return the seconds it took, fail after `timeout` of them, saying `what` for."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < timeout, f"waited {timeout:.0f} s for {what()}"
        time.sleep(0.5)
    return time.monotonic() - begin


def history(run: Path) -> list[dict[str, Any]]:
    """Return a run's history; a row that is being written is left out."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    except OSError:
        return []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def steps(run: Path) -> list[int]:
    """Return the steps in a run's history."""
    return [row["step"] for row in history(run)]
