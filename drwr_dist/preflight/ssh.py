"""How the hosts of a cluster file are reached: ssh, as the cluster launcher would."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def ssh_command(address: str, auth: dict[str, Any], timeout: float) -> list[str]:
    """Return the start of an ssh command line; what is run there follows as one more argument.

    Args:
        address: of the host.
        auth: that section of a cluster file.
        timeout: seconds until the host must have answered.
    """
    key = ["-i", str(Path(auth["ssh_private_key"]).expanduser())] if "ssh_private_key" in auth else []
    proxy = ["-o", f"ProxyCommand={auth['ssh_proxy_command']}"] if "ssh_proxy_command" in auth else []
    quiet = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
    limits = ["-o", f"ConnectTimeout={max(1, int(timeout))}", "-o", "ServerAliveInterval=10", "-o", "LogLevel=ERROR"]
    return ["ssh", *key, *proxy, *quiet, *limits, f"{auth.get('ssh_user', 'ubuntu')}@{address}"]
