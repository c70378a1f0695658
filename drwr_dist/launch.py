"""The verb `launch`: look before a cluster is used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from rich.console import Console

from drwr_dist import terminal
from drwr_dist.cli import load_options, run_verb
from drwr_dist.cluster_address import why_not
from drwr_dist.data.remote import absolute
from drwr_dist.errors import ClusterError, UsageError
from drwr_dist.preflight.cluster_file import check_cluster_file, load_cluster_file
from drwr_dist.preflight.findings import Finding, failed, print_failures, print_findings
from drwr_dist.preflight.head import check_on_head
from drwr_dist.preflight.hosts import check_hosts, has_own_hosts
from drwr_dist.preflight.limits import Limits
from drwr_dist.preflight.probe import package_version


@dataclass
class CheckOptions:
    """Check a cluster file, its hosts, or a running cluster; exit code 0: nothing is wrong, 1: something is."""

    cluster: str | None = None  # file of the cluster launcher, such as launch/cluster.yaml; none: not checked
    hosts: bool | None = None  # ask its hosts over ssh, and the cluster that runs there; null: if it names any
    address: str | None = None  # running cluster: auto | HOST:PORT | local (starts one here); none: not checked
    expect: list[str] = field(default_factory=list)  # addresses of nodes that must be in the running cluster
    package: str | None = None  # version of drwr_dist that all nodes must have; none: that where this check runs
    storage: str | None = None  # folder that all nodes must share, or URL; none: not checked
    data: str | None = None  # dataset that all nodes must be able to read; none: not checked
    timeout: float = 60.0  # seconds that each check may take
    wait: float = 0.0  # seconds to wait for nodes that have not joined: after ray up, workers take a minute or two
    min_disk: float = 5.0  # GiB free in a host's home, in a node's /tmp
    min_shm: float = 0.5  # GiB free in /dev/shm
    max_clock_difference: float = 2.0  # seconds
    min_bandwidth: float = 0.0  # Mbit/s of the all-reduce; 0: any
    reduce_megabytes: float = 16.0  # MiB; size of the all-reduce


def check(options: CheckOptions, console: Console) -> list[Finding]:
    """Run `launch check`.

    Raises:
        UsageError: nothing to check, or a file that is not a cluster file.
        ClusterError: the running cluster can't be joined.
    """
    if options.cluster is None and options.address is None:
        raise UsageError("launch check: cluster=FILE or address=auto is needed (--help lists every key)")
    if options.hosts and options.cluster is None:
        raise UsageError("hosts=true asks the hosts of a cluster file: give cluster=FILE too")
    findings: list[Finding] = []
    if options.cluster is not None:
        findings += _check_file_and_hosts(options.cluster, options, console)
    if options.address is not None:
        found = _check_running(options)
        print_findings(console, "nodes", found)
        findings += found
    return findings


def _check_file_and_hosts(path: str, options: CheckOptions, console: Console) -> list[Finding]:
    """Check a cluster file; where it names hosts, these; and the cluster itself, where Ray runs on the head."""
    content = load_cluster_file(path)
    findings = check_cluster_file(path, content)
    if not failed(findings) and not has_own_hosts(content) and options.address is None and _sees(options):
        raise UsageError("storage=… and data=… are checked on a running cluster: give address=auto there (ray exec)")
    print_findings(console, "cluster file", findings)
    ready = all(finding.ok or finding.check == "token" for finding in findings) and has_own_hosts(content)
    if failed(findings) or not (ready if options.hosts is None else options.hosts):
        if options.address is None:
            console.print(f"hosts, {_unseen(options)}: not checked", highlight=False)
        return findings
    hosts = check_hosts(content, _limits(options))
    print_findings(console, "hosts", hosts.findings)
    findings += hosts.findings
    if options.address is None and hosts.ray_runs:
        found = check_on_head(content, _for_the_head(options), _limits(options))
        findings.append(found)
        print_failures(console, [found])
    elif options.address is None:
        reason = "Ray does not run on the head (ray up starts it)"
        console.print(f"{_unseen(options)}: not checked, {reason}", highlight=False, soft_wrap=True)
    return findings


def _sees(options: CheckOptions) -> bool:
    return bool(options.storage or options.data)


def _unseen(options: CheckOptions) -> str:
    """Name what can't be looked at before Ray runs."""
    return ", ".join(["running cluster", *(name for name in ("storage", "data") if getattr(options, name))])


def _for_the_head(options: CheckOptions) -> dict[str, Any]:
    """Return the keys that the check on the head is given."""
    left_out = ("cluster", "hosts", "address", "expect", "package")
    given = {entry.name: getattr(options, entry.name) for entry in fields(options) if entry.name not in left_out}
    return {**given, "package": options.package or package_version()}


def _limits(options: CheckOptions) -> Limits:
    return Limits(
        timeout=options.timeout,
        wait=options.wait,
        min_disk=options.min_disk,
        min_shm=options.min_shm,
        max_clock_difference=options.max_clock_difference,
        min_bandwidth=options.min_bandwidth,
        reduce_megabytes=options.reduce_megabytes,
    )


def _check_running(options: CheckOptions) -> list[Finding]:
    address = os.environ.get("RAY_ADDRESS") or str(options.address)  # as for Ray
    reason = None if address == "local" else why_not(address)
    if reason is not None:
        raise ClusterError(f"address={address}: {reason}")
    # Only here: Ray and PyTorch take seconds to import, which a look at a file need not wait for.
    import ray.exceptions

    from drwr_dist.config import ClusterConfig
    from drwr_dist.engine.driver import ray_session
    from drwr_dist.preflight.nodes import Wanted, check_nodes

    wanted = Wanted(
        storage=_absolute(options.storage),
        data=_absolute(options.data),
        addresses=options.expect,
        package=options.package,
    )
    try:
        with ray_session(ClusterConfig(address=address), most_workers=1):
            return check_nodes(wanted, _limits(options))
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(f"address={address}: {str(error).split('. ')[0]}; see docs/security.md") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(f"address={address}: {(str(error) or type(error).__name__).splitlines()[0]}") from error


def _absolute(place: str | None) -> str | None:
    return None if place is None else absolute(place)


def main(arguments: Sequence[str]) -> int:
    """Run `launch check key=value …`."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print("usage: python -m drwr_dist.launch check key=value …   (check has --help)\n")
        print("  check  a cluster file, its hosts over ssh, a running cluster")
        return 0 if arguments else 2
    if arguments[0] != "check":
        raise UsageError(f"launch: unknown action {arguments[0]!r}; there is check")
    options = load_options(CheckOptions, arguments[1:], verb="launch check")
    return 1 if failed(check(options, terminal.console())) else 0


if __name__ == "__main__":
    run_verb(main)
