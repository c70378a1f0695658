"""A LAN of hosts on one machine: each has its own network, processes, /tmp, /dev/shm, home and sshd.

All of it lives in namespaces below one process, which ends when this one closes its pipe or dies: nothing stays.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]
VENV = Path(sys.prefix).resolve()  # the folder itself: a link would lead out of a host's own view of the disk
HERE = Path(__file__).parent
PROGRAMS = {
    "ip": "iproute2",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "curl": "curl",
    "pgrep": "procps",
    "nsenter": "util-linux",
}
SUBNET = "10.77.0"
SHARED = Path("/srv/shared")  # on every host: the storage that all of them see
HOME = "/home/ray"


def missing() -> str | None:
    """Say what this machine lacks for a lab; None: nothing."""
    if os.geteuid() != 0:
        return "namespaces with an sshd in them need root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    if packages:
        return f"these Debian packages are not installed: {' '.join(packages)}"
    if sys.base_prefix == sys.prefix:
        return "the tests run in a virtual environment, which the hosts lay over"
    flags = ["--mount", "--net", "--pid", "--fork", "--uts", "--ipc", "--mount-proc"]
    tried = subprocess.run(
        ["unshare", *flags, "ip", "link", "add", "try", "type", "bridge"], capture_output=True, text=True
    )
    return f"no namespaces here: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One host of the lab."""

    def __init__(self, lab: Lab, name: str, number: int):
        self.lab, self.name, self.ip = lab, name, f"{SUBNET}.{number}"
        self._init = 0

    def power_on(self) -> None:
        """Boot: namespaces, network cable, sshd. The home and what was installed are as they were left."""
        spaces = ["--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "--mount-proc"]
        script = [HERE / "host_init.sh", self.lab.folder, self.name, self.ip, REPOSITORY, VENV]
        self._process = subprocess.Popen(
            ["nsenter", "-t", str(self.lab.init), "-m", "-p", "unshare", *spaces, "bash", *map(str, script)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env=_environment(),
            stderr=(self.lab.folder.parent / f"{self.name}.log").open("a"),
        )  # fmt: skip
        self._init = _descendant(self._process.pid, 2)
        self.lab.ip("link", "add", f"to-{self.name}", "type", "veth", "peer", "name", "eth0", "netns", str(self._init))
        self.lab.ip("link", "set", f"to-{self.name}", "master", "switch", "up")
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "ready", f"host {self.name} did not start"

    def power_off(self) -> None:
        """Pull the plug."""
        os.kill(self._init, signal.SIGKILL)
        self._process.wait(timeout=10)

    def link(self, state: str) -> None:
        """Set the cable `up` or `down`."""
        self.lab.ip("link", "set", f"to-{self.name}", state)

    def command(self, line: str, **environment: str) -> list[str]:
        """Return the command that runs a bash line on this host, in the repository, as its user would."""
        inside = ["nsenter", "-t", str(self._init), "-m", "-n", "-p", "-u", "-i", "env", "-i"]
        settings = {"HOME": HOME, "LANG": "C.UTF-8", "TERM": "dumb", "COLUMNS": "120", **environment}
        settings["PATH"] = f"{VENV}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        pairs = [f"{key}={value}" for key, value in settings.items()]
        return [*inside, *pairs, "bash", "-c", f"cd {REPOSITORY} && {line}"]

    def run(self, line: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a bash line on this host to its end; the result holds both output streams in stdout."""
        return subprocess.run(
            self.command(line, **environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout,
        )  # fmt: skip

    def start(self, line: str, output: Path, **environment: str) -> subprocess.Popen[str]:
        """Start a bash line on this host; its output goes to a file."""
        return subprocess.Popen(
            self.command(line, **environment), stdin=subprocess.DEVNULL, stdout=output.open("w"),
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def path(self, inside: str | Path) -> Path:
        """Return where a path of this host lies for the test process."""
        return Path(f"/proc/{self._init}/root{inside}")


class Lab:
    """An operator, a head and workers on one switch."""

    def __init__(self, folder: Path, workers: int = 2):
        self.folder = folder / "lab"
        self.operator, self.head = Host(self, "operator", 9), Host(self, "head", 10)
        self.workers = [Host(self, f"worker{number}", 11 + number) for number in range(workers)]
        self.hosts = [self.operator, self.head, *self.workers]

    def __enter__(self) -> Lab:
        self.folder.mkdir()
        spaces = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--uts", "--ipc", "--mount-proc"]
        self._process = subprocess.Popen(
            ["unshare", *spaces, "bash", str(HERE / "lab_init.sh"), str(self.folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(),
        )  # fmt: skip
        assert self._process.stdout is not None
        assert self._process.stdout.readline().strip() == "ready", "the lab did not start"
        self.init = _descendant(self._process.pid, 1)
        self._make_keys(Path(f"/proc/{self.init}/root{self.folder}/keys"))
        for host in self.hosts:
            host.power_on()
        shutil.copy(self._key, self.operator.path(f"{HOME}/.ssh/drwr_cluster"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # pid 1 goes with it (--kill-child), and everything below pid 1
        self._process.wait(timeout=10)

    def ip(self, *arguments: str) -> None:
        """Run `ip …` where the switch is."""
        subprocess.run(["nsenter", "-t", str(self.init), "-n", "ip", *arguments], check=True, env=_environment())

    def _make_keys(self, folder: Path) -> None:
        folder.mkdir()
        for name in ("host", "operator"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        shutil.copy(folder / "operator.pub", folder / "authorized_keys")
        self._key = folder / "operator"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}


def _descendant(pid: int, generations: int) -> int:
    """Wait until a process has a child (of a child …) and return its pid."""
    deadline = time.monotonic() + 120
    while generations:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except FileNotFoundError:
            raise RuntimeError(f"process {pid} ended while a host was starting") from None
        if children:
            pid, generations = int(children[0]), generations - 1
        elif time.monotonic() > deadline:
            raise RuntimeError(f"process {pid} started nothing")
        else:
            time.sleep(0.02)
    return pid
