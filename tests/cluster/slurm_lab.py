"""Slurm on the hosts of the lab: munge, one controller, a slurmd on each."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from cluster import PATIENCE
from lab import SHARED, Host, Lab

PROGRAMS = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
CONFIG = "/tmp/slurm.conf"  # on every host

_CONTENT = """
ClusterName=lab
SlurmctldHost={controller}
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
StateSaveLocation=/tmp/slurm
SlurmdSpoolDir=/tmp/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SchedulerParameters=batch_sched_delay=0,sched_interval=1
KillWait=20
PartitionName=lab Nodes=ALL Default=YES State=UP OverSubscribe=EXCLUSIVE
"""


def missing() -> str | None:
    """Say which Debian packages Slurm on the hosts needs; None: none."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    return f"these Debian packages are not installed: {' '.join(packages)}" if packages else None


class Slurm:
    """A Slurm cluster of one CPU per host, as an administrator would leave it; jobs start on the controller."""

    def __init__(self, lab: Lab):
        self.controller, self.nodes = lab.head, [lab.head, *lab.workers]
        self._logs = lab.folder.parent

    def start(self) -> None:
        key = os.urandom(1024)
        names = "".join(f"{host.ip} {host.name}\n" for host in self.nodes)
        content = _CONTENT.format(controller=self.controller.name)
        content += "".join(f"NodeName={host.name} NodeAddr={host.ip} CPUs=1 State=UNKNOWN\n" for host in self.nodes)
        for host in self.nodes:
            with host.path("/etc/hosts").open("a") as file:
                file.write(names)
            host.path(CONFIG).write_text(content)
            secret = host.path("/run/munge.key")
            secret.write_bytes(key)
            secret.chmod(0o600)
            files = "--pid-file=/run/munge/pid --seed-file=/run/munge/seed --log-file=/run/munge/log"
            self._daemon(host, f"mkdir -p /run/munge && exec munged -F -f --key-file=/run/munge.key {files}")
        self._daemon(self.controller, f"mkdir -p /tmp/slurm && exec slurmctld -D -f {CONFIG}")
        for host in self.nodes:
            self._daemon(host, f"mkdir -p /tmp/slurmd && exec slurmd -D -f {CONFIG}")
        deadline = time.monotonic() + PATIENCE
        while self.run("sinfo -h -t idle -o %D").strip() != str(len(self.nodes)):
            assert time.monotonic() < deadline, self.run("sinfo -N -l")
            time.sleep(1)

    def run(self, line: str, **environment: str) -> str:
        """Run a line on the controller."""
        return self.controller.run(line, SLURM_CONF=CONFIG, **environment).stdout

    def submit(self, *arguments: str, options: str = "", **environment: str) -> int:
        """Run `sbatch launch/slurm.sh arguments` and return the number of the job."""
        line = f"sbatch --parsable --output={SHARED}/job-%j.log {options} launch/slurm.sh {' '.join(arguments)}"
        return int(self.run(line, **environment))

    def state(self, job: int) -> str:
        """Return what Slurm says of a job: RUNNING, COMPLETED, …"""
        shown = self.run(f"scontrol show job {job}")
        return shown.partition("JobState=")[2].partition(" ")[0] or shown

    def wait(self, job: int, timeout: float = PATIENCE) -> str:
        """Wait for a job's end; return its state and exit code as Slurm shows them."""
        deadline = time.monotonic() + timeout
        while (state := self.state(job)) in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            assert time.monotonic() < deadline, f"job {job} is still {state}\n{self.output(job)}"
            time.sleep(1)
        code = self.run(f"scontrol show job {job}").partition("ExitCode=")[2].split(maxsplit=1)[0]
        return f"{state} {code}"

    def output(self, job: int) -> str:
        """Return what the job has printed so far."""
        log: Path = self.controller.path(SHARED / f"job-{job}.log")
        return log.read_text() if log.exists() else ""

    def _daemon(self, host: Host, line: str) -> None:
        host.start(line, self._logs / f"{host.name}-{len(list(self._logs.iterdir()))}.log", SLURM_CONF=CONFIG)
