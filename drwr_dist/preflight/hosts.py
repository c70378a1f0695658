"""What the hosts of an on-premises cluster lack before `ray up`: asked over ssh, all at a time."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drwr_dist.errors import UsageError
from drwr_dist.preflight.findings import Finding
from drwr_dist.preflight.limits import Limits

HEAD_PORTS = (6379, 8265)

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
for port in PORTS; do
  if (exec 3<> /dev/tcp/"$(echo "$SSH_CONNECTION" | cut -d' ' -f3)"/$port) 2> /dev/null; then echo busy=$port; fi
done
"""


def check_hosts(content: dict[str, Any], limits: Limits) -> list[Finding]:
    """Check every host of a cluster file for provider local.

    Args:
        content: the cluster file.
        limits: what is asked of a host.

    Raises:
        UsageError: the file is not for hosts of one's own.
    """
    provider = content["provider"]
    if provider["type"] != "local":
        raise UsageError(f"hosts=true: checks hosts of one's own; this file is for {provider['type']}")
    addresses = [str(provider["head_ip"]), *map(str, provider["worker_ips"])]

    def check(address: str) -> list[Finding]:
        place = f"{address} (head)" if address == addresses[0] else address
        ports = HEAD_PORTS if address == addresses[0] else ()
        answer = _ask(address, content.get("auth", {}), ports, limits.timeout)
        if isinstance(answer, str):
            return [Finding(place, "ssh", False, "no", answer)]
        return [Finding(place, "ssh", True, "ok"), *_judge(place, answer, limits)]

    with ThreadPoolExecutor(max_workers=32) as pool:
        return [finding for findings in pool.map(check, addresses) for finding in findings]


def _ask(address: str, auth: dict[str, Any], ports: tuple[int, ...], timeout: float) -> dict[str, str] | str:
    """Return a host's answers, or why there are none."""
    key = ["-i", str(Path(auth["ssh_private_key"]).expanduser())] if "ssh_private_key" in auth else []
    proxy = ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"] if "ssh_proxy_command" in auth else []
    quiet = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    command = ["ssh", *key, *proxy, *quiet, "-o", f"ConnectTimeout={int(timeout)}", "-o", "LogLevel=ERROR"]
    script = _QUESTIONS.replace("PORTS", " ".join(map(str, ports)))
    begin = time.time()
    try:
        done = subprocess.run(
            [*command, f"{auth.get('ssh_user', 'ubuntu')}@{address}", "bash", "-s"],
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


def _judge(place: str, answer: dict[str, str], limits: Limits) -> Iterator[Finding]:
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
    busy = answer["busy"] and not answer["ray"]
    reason = f"port {answer['busy']} is taken by something that is not Ray; stop it, or change the port in the file"
    yield Finding(place, "ports", not busy, answer["busy"] or "free", reason)
