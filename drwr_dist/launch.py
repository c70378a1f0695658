"""The verb `launch`: look before a cluster is used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from drwr_dist.cli import load_options, run_verb
from drwr_dist.errors import ClusterError, UsageError
from drwr_dist.preflight.cluster_file import check_cluster_file, load_cluster_file
from drwr_dist.preflight.connection import check_reachable
from drwr_dist.preflight.findings import Finding, failed, print_findings
from drwr_dist.preflight.hosts import check_hosts
from drwr_dist.preflight.limits import Limits


@dataclass
class CheckOptions:
    """Check a cluster file, its hosts, or a running cluster; exit code 0: nothing is wrong, 1: something is."""

    cluster: str | None = None  # file of the cluster launcher, such as launch/cluster.yaml; none: not checked
    hosts: bool = False  # ask the hosts of that file over ssh whether ray up will work
    address: str | None = None  # running cluster: auto | HOST:PORT | local (starts one here); none: not checked
    storage: str | None = None  # folder that all nodes must share; none: not checked
    data: str | None = None  # dataset that all nodes must be able to read; none: not checked
    timeout: float = 60.0  # seconds that each check may take
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
    if options.address is None and (options.storage or options.data):
        raise UsageError("storage=… and data=… are checked on a running cluster: give address=auto too")
    if options.hosts and options.cluster is None:
        raise UsageError("hosts=true asks the hosts of a cluster file: give cluster=FILE too")
    findings: list[Finding] = []
    if options.cluster is not None:
        content = load_cluster_file(options.cluster)
        found = check_cluster_file(options.cluster, content)
        print_findings(console, "cluster file", found)
        findings += found
        if options.hosts and not failed(found):
            found = check_hosts(content, _limits(options))
            print_findings(console, "hosts", found)
            findings += found
    if options.address is not None:
        found = _check_running(options)
        print_findings(console, "nodes", found)
        findings += found
    return findings


def _limits(options: CheckOptions) -> Limits:
    return Limits(
        timeout=options.timeout,
        min_disk=options.min_disk,
        min_shm=options.min_shm,
        max_clock_difference=options.max_clock_difference,
        min_bandwidth=options.min_bandwidth,
        reduce_megabytes=options.reduce_megabytes,
    )


def _check_running(options: CheckOptions) -> list[Finding]:
    check_reachable(str(options.address), timeout=10)
    # Only here: Ray and PyTorch take seconds to import, which a look at a file need not wait for.
    import ray.exceptions

    from drwr_dist.config import ClusterConfig
    from drwr_dist.engine.driver import ray_session
    from drwr_dist.preflight.nodes import check_nodes

    storage = options.storage and os.path.abspath(os.path.expanduser(options.storage))
    data = options.data
    if data is not None and "://" not in data:
        data = os.path.abspath(os.path.expanduser(data))
    try:
        with ray_session(ClusterConfig(address=str(options.address)), most_workers=1):
            return check_nodes(storage, data, _limits(options))
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(f"address={options.address}: {str(error).split('. ')[0]}; see docs/security.md") from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"address={options.address}: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 140))


def main(arguments: Sequence[str]) -> int:
    """Run `launch check key=value …`."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print("usage: python -m drwr_dist.launch check key=value …   (check has --help)\n")
        print("  check  a cluster file, its hosts over ssh, a running cluster")
        return 0 if arguments else 2
    if arguments[0] != "check":
        raise UsageError(f"launch: unknown action {arguments[0]!r}; there is check")
    options = load_options(CheckOptions, arguments[1:], verb="launch check")
    return 1 if failed(check(options, _console())) else 0


if __name__ == "__main__":
    run_verb(main)
