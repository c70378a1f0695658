"""Whether there is a cluster at an address. Ray itself tries for minutes before it says no."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from drwr_dist.errors import ClusterError

_LAST_CLUSTER = Path(os.environ.get("RAY_TMPDIR", "/tmp/ray")) / "ray_current_cluster"  # Ray's note for address=auto


def check_reachable(address: str, timeout: float) -> None:
    """Check that something listens where a running cluster should be.

    Args:
        address: auto, local or HOST:PORT; RAY_ADDRESS wins, as it does for Ray.
        timeout: seconds.

    Raises:
        ClusterError: nothing listens there, or auto finds no cluster on this host.
    """
    address = os.environ.get("RAY_ADDRESS") or address
    if address == "local":
        return
    where = address
    if address == "auto":
        try:
            where = _LAST_CLUSTER.read_text().strip()
        except OSError:
            raise ClusterError("address=auto: Ray does not run on this host; start it, or give HOST:PORT") from None
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout):
            return
    except ValueError:
        raise ClusterError(f"address={address}: not auto, local or HOST:PORT") from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise ClusterError(f"address={address}: no cluster at {where} ({reason.lower()}); ray up starts one") from error
