"""Whether a Ray cluster can be joined. Ray itself tries for minutes before it says no, and a wrong token hangs it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

CONNECT_TIMEOUT = 5.0  # seconds until something must answer at an address
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"  # the first that Ray asks; it needs the token


def why_not(address: str) -> str | None:
    """Say why the cluster at an address can't be joined; None: nothing speaks against it.

    Args:
        address: auto, or HOST:PORT; `local` and ray:// addresses are left to Ray.
    """
    where = address
    if address == "auto":
        try:
            where = _note_of_ray().read_text().strip()
        except OSError:
            return "Ray does not run on this host; start it, or give HOST:PORT"
    host, colon, port = where.rpartition(":")
    if not colon or "://" in where or not port.isdigit():
        return None
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT):
            pass
    except OSError as error:
        return f"no Ray cluster answers at {where} ({(error.strerror or str(error)).lower()})"
    # Behind TLS the question below would need its certificates, and so a token is Ray's to complain about.
    refusal = None if os.environ.get("RAY_USE_TLS") == "1" else _refusal(where)
    return refusal or _not_from_here(where)


def _note_of_ray() -> Path:
    """Return where Ray notes the address of the cluster that was started here last."""
    temporary = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(temporary, "ray", "ray_current_cluster")


def _not_from_here(where: str) -> str | None:
    """Say that Ray does not run on this machine: it would look for itself for a minute and more."""
    from ray._private.services import find_node_ids

    if find_node_ids():
        return None
    return f"this machine is no node of the cluster at {where}; submit the command to it (ray submit, ray job submit)"


def _refusal(where: str) -> str | None:
    import grpc  # with Ray; only here, since both take a while to import
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

    header = AuthenticationTokenLoader.instance().get_token_for_http_header() if is_token_auth_enabled() else {}
    token = [(name.lower(), value) for name, value in header.items()]
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", metadata=token, timeout=CONNECT_TIMEOUT)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                mine = "another token than ours (~/.ray/auth_token, or RAY_AUTH_TOKEN)" if token else "a token"
                return f"the cluster at {where} asks for {mine}; see docs/security.md"
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                return f"what answers at {where} is not a Ray cluster"
    return None  # a busy head, or a Ray that knows this question no more: Ray will see
