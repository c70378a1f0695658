"""The check of a running cluster, from outside: it runs on the head, over ssh, and its output is shown here."""

from __future__ import annotations

import shlex
import subprocess
import sys
from typing import Any

from drwr_dist.preflight.findings import Finding
from drwr_dist.preflight.limits import Limits
from drwr_dist.preflight.ssh import ssh_command

_ENVIRONMENT = "~/drwr-dist/launch/env.sh"  # where launch/cluster.yaml puts the package


def check_on_head(content: dict[str, Any], settings: dict[str, Any], limits: Limits) -> Finding:
    """Run `launch check address=auto` on the head of a cluster file; its findings go to our standard output.

    Args:
        content: the cluster file, for provider local.
        settings: keys of the check and their values; those that are None or empty are left out.
        limits: of the check.
    """
    head = str(content["provider"]["head_ip"])
    values = {"address": "auto", "expect": list(content["provider"]["worker_ips"]), **settings}
    pairs = [f"{key}={_text(value)}" for key, value in values.items() if value is not None and value != []]
    line = f". {_ENVIRONMENT} && exec python -m drwr_dist.launch check {shlex.join(pairs)}"
    sys.stdout.flush()
    try:
        code = subprocess.run(
            [*ssh_command(head, content.get("auth", {}), limits.timeout), line],
            stdin=subprocess.DEVNULL, timeout=60 + 6 * limits.timeout + limits.wait,
        ).returncode  # fmt: skip
    except subprocess.TimeoutExpired:
        return Finding(f"{head} (head)", "cluster", False, "no", "the check that runs there did not end")
    reason = {
        0: "",
        1: "see the failures above",
        2: "its package does not know this check; bring it up to date: ray up",
    }.get(code, f"the check that runs there ended with exit code {code}")
    return Finding(f"{head} (head)", "cluster", code == 0, "no" if code else "ok", reason)


def _text(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list) else str(value)
