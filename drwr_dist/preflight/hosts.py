"""What the hosts of an on-premises cluster lack before `ray up`: asked over ssh, all at a time."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drwr_dist.errors import UsageError
from drwr_dist.preflight.cluster_file import TOKEN
from drwr_dist.preflight.findings import Finding
from drwr_dist.preflight.limits import Limits
from drwr_dist.preflight.ssh import ssh_command

HEAD_PORTS = {6379: "Ray's control store", 8265: "the dashboard", 52365: "the agent that starts jobs"}

# Prints key=value lines with what every Debian has.
_QUESTIONS = r"""
if [ -r ~/.drwr_host.sh ]; then . ~/.drwr_host.sh; fi
echo clock=$(date +%s.%N)
echo rsync=$(command -v rsync)
python=${DRWR_PYTHON:-python3}
if [ -x "${DRWR_VENV:-}/bin/python" ]; then python=$DRWR_VENV/bin/python; fi
echo python=$("$python" -V 2>&1)
echo disk=$(df -kP ~ | awk 'END {print $4}')
echo shm=$(df -kP /dev/shm | awk 'END {print $4}')
echo ray=$(pgrep -x raylet | head -1)
echo token=$(sha256sum 2> /dev/null < ~/.ray/auth_token | cut -c1-64)
for port in PORTS; do
  if grep -qsE ":$(printf %04X $port) [0-9A-F]+:0000 0A" /proc/net/tcp /proc/net/tcp6; then
    echo busy=$port # something listens there, on whichever address
  fi
done
"""


def has_own_hosts(content: dict[str, Any]) -> bool:
    """Say whether a cluster file names its hosts, rather than a cloud that makes them."""
    return content["provider"]["type"] == "local" and "head_ip" in content["provider"]


@dataclass(frozen=True)
class Hosts:
    """What the hosts of a cluster file told."""

    findings: list[Finding]
    ray_runs: bool  # on the head


def check_hosts(content: dict[str, Any], limits: Limits) -> Hosts:
    """Check every host of a cluster file for provider local.

    Args:
        content: the cluster file.
        limits: what is asked of a host.

    Raises:
        UsageError: the file is not for hosts of one's own.
    """
    provider = content["provider"]
    if not has_own_hosts(content):
        raise UsageError(f"hosts=true: checks hosts of one's own; this file is for {provider['type']}")
    head = str(provider["head_ip"])
    addresses = [head, *map(str, provider["worker_ips"])]

    def ask(address: str) -> dict[str, str] | str:
        return _ask(address, content.get("auth", {}), HEAD_PORTS if address == head else {}, limits.timeout)

    with ThreadPoolExecutor(max_workers=32) as pool:
        answers = dict(zip(addresses, pool.map(ask, addresses), strict=True))
    findings = []
    for address, answer in answers.items():
        place = f"{address} (head)" if address == head else address
        if isinstance(answer, str):
            findings.append(Finding(place, "ssh", False, "no", answer))
        else:
            findings += [Finding(place, "ssh", True, "ok"), *_judge(place, answer, limits, is_head=address == head)]
    there = answers[head]
    return Hosts(findings, ray_runs=not isinstance(there, str) and bool(there.get("ray")))


def _ask(address: str, auth: dict[str, Any], ports: dict[int, str], timeout: float) -> dict[str, str] | str:
    """Return a host's answers, or why there are none."""
    script = _QUESTIONS.replace("PORTS", " ".join(map(str, ports)))
    begin = time.time()
    try:
        done = subprocess.run(
            [*ssh_command(address, auth, timeout), "bash -s"],
            input=script, capture_output=True, text=True, timeout=timeout + 10,
        )  # fmt: skip
    except FileNotFoundError:
        return "there is no ssh on this machine"
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout + 10:.0f} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"ssh ended with code {done.returncode}"
    pairs = [line.partition("=") for line in done.stdout.splitlines()]
    answer = {key: value for key, _, value in pairs if key != "busy"}
    answer["busy"] = " ".join(value for key, _, value in pairs if key == "busy")
    answer["difference"] = str(_difference(float(answer.get("clock") or 0), begin, time.time()))
    return answer


def _difference(clock: float, begin: float, end: float) -> float:
    """Return by how much a clock that was read between two moments here is certainly off (seconds)."""
    return clock - end if clock > end else min(0.0, clock - begin)


def _judge(place: str, answer: dict[str, str], limits: Limits, *, is_head: bool) -> Iterator[Finding]:
    rsync = bool(answer["rsync"])
    yield Finding(place, "rsync", rsync, "ok" if rsync else "no", "not installed; ray up copies files with it")
    words = answer["python"].split()
    version = words[-1] if words[:1] == ["Python"] else ""
    new_enough = version != "" and tuple(map(int, version.split(".")[:2])) >= (3, 11)
    yield Finding(
        place, "python", new_enough, version or "no", "3.11 or newer is needed; DRWR_PYTHON in ~/.drwr_host.sh names it"
    )
    for name, needed, fix in (
        ("disk", limits.min_disk, "make room in the home"),
        ("shm", limits.min_shm, "mount -o remount,size=4g /dev/shm"),
    ):
        free = int(answer[name] or 0) / 2**20  # of KiB
        reason = f"{free:.1f} GiB free, {needed:.1f} GiB are asked for: {fix}"
        enough = free >= needed or (name == "disk" and bool(answer["ray"]))  # it is installed already
        yield Finding(place, "/dev/shm" if name == "shm" else name, enough, f"{free:.1f} GiB", reason)
    difference = float(answer["difference"])
    yield Finding(
        place, "clock", abs(difference) <= limits.max_clock_difference, f"{difference:+.1f} s",
        f"{difference:+.1f} s from this machine's; set the clocks, for example with chrony",
    )  # fmt: skip
    yield Finding(place, "Ray", True, "runs" if answer["ray"] else "not yet")
    if is_head and not answer["ray"]:
        taken = ", ".join(f"{port} ({HEAD_PORTS[int(port)]})" for port in answer["busy"].split())
        reason = f"port {taken} is taken by something that is not Ray; stop it (ss -ltnp names it)"
        yield Finding(place, "ports", not taken, answer["busy"] or "free", reason)
    token = Path(TOKEN).expanduser()
    if answer["token"] and token.is_file():  # a host that has none yet gets it from ray up
        same = answer["token"] == hashlib.sha256(token.read_bytes()).hexdigest()
        reason = f"{TOKEN} is another one than on this machine; ray up hands this machine's out"
        wrong = False if answer["ray"] else None  # before ray up it is no mistake
        yield Finding(place, "token", True if same else wrong, "ours" if same else "another", reason)
