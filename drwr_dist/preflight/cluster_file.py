"""Checks of a cluster file, before anything is started from it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from drwr_dist.errors import UsageError
from drwr_dist.preflight.findings import Finding

TOKEN = "~/.ray/auth_token"
_EXAMPLE_NETWORK = "192.0.2."  # reserved for documentation: launch/cluster.yaml as it comes
_CHANGE = "put the addresses of your hosts there"


def load_cluster_file(path: str) -> dict[str, Any]:
    """Read a cluster launcher's file.

    Raises:
        UsageError: no such file, not YAML, or a Kubernetes manifest.
    """
    try:
        documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"cluster={path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"cluster={path}: not a YAML file: {' '.join(str(error).split())}") from error
    if any(isinstance(document, dict) and "apiVersion" in document for document in documents):
        raise UsageError(
            f"cluster={path}: a Kubernetes manifest; check it with kubectl apply --dry-run=server -f {path}"
        )
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise UsageError(f"cluster={path}: not a file of the Ray cluster launcher")
    return documents[0]


def check_cluster_file(path: str, content: dict[str, Any]) -> list[Finding]:
    """Check a cluster file against Ray's schema, and for what this package needs beyond it."""
    findings = list(_schema(path, content))
    if findings:
        return findings  # the checks below rely on the kinds of the values
    findings = [Finding(path, "schema", True, "ok")]
    for check, problems in (
        ("addresses", _addresses(content)),
        ("files", _files(content)),
        ("programs here", _programs()),
        ("ssh key", _key(content)),
        ("token", _token(content)),
        ("start commands", _start_commands(content)),
    ):
        found = [Finding(path, check, ok, "to do" if ok is None else "wrong", reason) for ok, reason in problems]
        findings += found or [Finding(path, check, True, "ok")]
    return findings


Problems = Iterator[tuple[bool | None, str]]  # (ok, reason)


def _schema(path: str, content: dict[str, Any]) -> Iterator[Finding]:
    package = importlib.util.find_spec("ray")  # found, not imported: that takes seconds
    assert package is not None and package.origin is not None
    schema = json.loads((Path(package.origin).parent / "autoscaler" / "ray-schema.json").read_text())
    for error in jsonschema.Draft7Validator(schema).iter_errors(content):
        where = ".".join(map(str, error.absolute_path)) or "the file"
        yield Finding(path, "schema", False, "wrong", f"{where}: {error.message}")


def _addresses(content: dict[str, Any]) -> Problems:
    provider = content["provider"]
    if provider["type"] != "local" or "coordinator_address" in provider:
        return
    if "head_ip" not in provider or not provider.get("worker_ips"):
        yield False, f"provider.head_ip and provider.worker_ips are needed on premises; {_CHANGE}"
        return
    addresses = [provider["head_ip"], *provider["worker_ips"]]
    if len(set(addresses)) < len(addresses):
        yield False, "an address stands twice; the head can't be a worker too"
    if any(str(address).startswith(_EXAMPLE_NETWORK) for address in addresses):
        yield None, f"these are the example's addresses; {_CHANGE}"


def _files(content: dict[str, Any]) -> Problems:
    for remote, local in content.get("file_mounts", {}).items():
        if local != TOKEN and not Path(local).expanduser().exists():
            yield False, f"file_mounts {remote}: there is no {local} here; run this from the repository's root"


def _programs() -> Problems:
    missing = [program for program in ("rsync", "ssh") if shutil.which(program) is None]
    if missing:
        yield None, f"{' and '.join(missing)} not installed on this machine; ray up reaches the hosts with them"


def _key(content: dict[str, Any]) -> Problems:
    key = content.get("auth", {}).get("ssh_private_key")
    if content["provider"]["type"] == "local" and key is None:
        yield False, "auth.ssh_private_key is missing: without it the head can't reach the workers"
    if key is not None and not Path(key).expanduser().exists():
        yield (
            None,
            (
                f"there is no {key} here yet: give the path of yours as auth.ssh_private_key, or make one "
                f"(ssh-keygen -t ed25519 -f {key}), and add it to the hosts"
            ),
        )


def _token(content: dict[str, Any]) -> Problems:
    if TOKEN not in content.get("file_mounts", {}):
        yield False, f"file_mounts does not bring {TOKEN} to the hosts, so they could not join"
    elif not Path(content["file_mounts"][TOKEN]).expanduser().exists():
        yield None, "there is no token here yet: ray get-auth-token --generate"
    elif Path(content["file_mounts"][TOKEN]).expanduser().stat().st_mode & 0o077:
        yield None, f"others on this machine can read it: chmod 600 {content['file_mounts'][TOKEN]}"


def _start_commands(content: dict[str, Any]) -> Problems:
    head = " ".join(content.get("head_start_ray_commands", []))
    worker = " ".join(content.get("worker_start_ray_commands", []))
    if "RAY_AUTH_MODE=disabled" in head + worker:
        yield False, "RAY_AUTH_MODE=disabled lets anyone on the network run code; remove it"
    if "ray start" not in head or "ray start" not in worker:
        yield False, "ray start is missing in head_start_ray_commands or worker_start_ray_commands"
    if "--num-cpus=0" not in head:
        yield False, "--num-cpus=0 is missing on the head: training would run there"
    if content["provider"]["type"] == "local" and not all("--node-ip-address" in line for line in (head, worker)):
        yield False, "--node-ip-address is missing: Ray guesses, and may take the wrong network"
