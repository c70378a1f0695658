"""Checks of a running cluster: what each node has, and what the nodes can do together."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from drwr_dist.preflight.crew import Answer, Node, addresses_of_the_living, ask, dismiss, gather_crew
from drwr_dist.preflight.findings import Finding
from drwr_dist.preflight.limits import Limits
from drwr_dist.preflight.probe import Probe

PACKAGES = {"drwr_dist": "package", "torch": "torch", "ray": "ray", "python": "python"}
_SHARDS_READ = 4  # shards whose first sample each node reads


@dataclass(frozen=True)
class Wanted:
    """What a cluster must have and see."""

    storage: str | None = None  # folder that all nodes must share, or URL; None: not checked
    data: str | None = None  # dataset that all nodes must be able to read; None: not checked
    addresses: Sequence[str] = ()  # of nodes that must be there
    package: str | None = None  # version of drwr_dist; None: that of this process


def check_nodes(wanted: Wanted, limits: Limits) -> list[Finding]:
    """Check every node of the cluster that this process is connected to.

    Args:
        wanted: what the cluster must have.
        limits: what is asked of a node.
    """
    storage, data = wanted.storage, wanted.data
    _wait_for(wanted.addresses, limits.wait)
    nodes = gather_crew()
    try:
        answers = ask(nodes, lambda _, node: node.actor.facts.remote(), limits.timeout)
        findings = list(_facts(nodes, answers, wanted.package, limits))
        findings += _absent(nodes, wanted.addresses)
        alive = [node for node, answer in zip(nodes, answers, strict=True) if not answer.problem]
        findings += _clocks(alive, limits)
        if storage is not None:
            findings += _storage(alive, storage, limits)
        if data is not None:
            findings += _shards(alive, data, limits)
        return findings + list(_reduce(alive, limits))
    finally:
        dismiss(nodes)


def _wait_for(addresses: Sequence[str], seconds: float) -> None:
    """Wait until a node has joined at each of the addresses."""
    deadline = time.monotonic() + seconds
    while set(addresses) - addresses_of_the_living() and time.monotonic() < deadline:
        time.sleep(1)


def _absent(nodes: list[Node], addresses: Sequence[str]) -> Iterator[Finding]:
    """Name the addresses at which no node has joined."""
    for address in addresses:
        if address not in {node.address for node in nodes}:
            reason = (
                "did not join Ray, or was lost. After ray up a worker takes a minute or two (wait=120 waits for it); "
                "else the check of the hosts may say why, and so does ray exec FILE "
                "'tail -n 50 /tmp/ray/session_latest/logs/monitor.log'"
            )
            yield Finding(address, "answers", False, "absent", reason)


def _facts(nodes: list[Node], answers: list[Answer], package: str | None, limits: Limits) -> Iterator[Finding]:
    here = Probe().facts()
    here["drwr_dist"] = package or here["drwr_dist"]
    for node, answer in zip(nodes, answers, strict=True):
        yield Finding(node.name, "answers", not answer.problem, "no" if answer.problem else "ok", answer.problem)
        if answer.problem:
            continue
        facts = answer.value
        for name, check in PACKAGES.items():
            where = "where this check was asked for" if name == "drwr_dist" and package else "where this check runs"
            fix = "ray up brings all to the same" if name == "drwr_dist" else "install the same on all"
            reason = f"{facts[name]}, but {here[name]} {where}; {fix} (launch/install.sh)"
            shown = "missing" if facts[name].startswith("missing") else facts[name]
            yield Finding(node.name, check, facts[name] == here[name], shown, reason)
        yield _gpus(node, facts)
        for name, check, least in (("disk", "disk", limits.min_disk), ("shm", "/dev/shm", limits.min_shm)):
            free = facts[name] / 2**30
            fix = "make room in /tmp, where Ray keeps its files" if name == "disk" else "mount it larger (--shm-size)"
            reason = f"{free:.1f} GiB free, {least:.1f} GiB are asked for: {fix}"
            yield Finding(node.name, check, free >= least, f"{free:.1f} GiB", reason)


def _gpus(node: Node, facts: dict[str, Any]) -> Finding:
    found, given = len(facts["gpus"]), node.gpus
    idle = node.trains and found > given
    reason = f"{found} GPUs are there and Ray gives out {given}; start Ray with --num-gpus={found}"
    return Finding(
        node.name, "GPUs", None if idle else True, str(given) if found == given else f"{given}/{found}", reason
    )


def _clocks(nodes: list[Node], limits: Limits) -> Iterator[Finding]:
    for node in nodes:  # one after the other: a probe's second answer takes milliseconds
        begin = time.time()
        (answer,) = ask([node], lambda _, node: node.actor.clock.remote(), limits.timeout)
        end = time.time()
        if answer.problem:
            yield Finding(node.name, "clock", False, "no", answer.problem)
            continue
        off = answer.value - end if answer.value > end else min(0.0, answer.value - begin)
        reason = f"{off:+.1f} s from the clock here; set the clocks, for example with chrony"
        yield Finding(node.name, "clock", abs(off) <= limits.max_clock_difference, f"{off:+.1f} s", reason)


def _storage(nodes: list[Node], storage: str, limits: Limits) -> Iterator[Finding]:
    """Each node writes a file, then looks for the files of all nodes."""
    unique = uuid.uuid4().hex[:8]
    names = [f".check-{unique}-{number}" for number in range(len(nodes))]
    written = ask(nodes, lambda number, node: node.actor.write.remote(storage, names[number]), limits.timeout)
    there = [name for name, answer in zip(names, written, strict=True) if not answer.problem]
    seen = ask(nodes, lambda _, node: node.actor.missing.remote(storage, there), limits.timeout)
    for node, write, look in zip(nodes, written, seen, strict=True):
        reason = write.problem or look.problem
        if not reason and look.value:
            others = ", ".join(nodes[names.index(name)].name for name in look.value)
            reason = f"what {others} wrote to {storage} is not there; it must be one folder that all nodes share"
        elif reason:
            reason = f"{storage} can't be written: {reason}"
        yield Finding(node.name, "storage", not reason, "no" if reason else "shared", reason)
    ask(nodes, lambda number, node: node.actor.remove.remote(storage, names[number]), limits.timeout)


def _shards(nodes: list[Node], data: str, limits: Limits) -> Iterator[Finding]:
    answers = ask(nodes, lambda _, node: node.actor.read_shards.remote(data, _SHARDS_READ), limits.timeout)
    digests = [answer.value[0] for answer in answers if not answer.problem]
    for node, answer in zip(nodes, answers, strict=True):
        reason = answer.problem
        if not reason and answer.value[0] != digests[0]:
            reason = f"{data} holds another dataset there than on {nodes[0].name}"
        yield Finding(node.name, "shards", not reason, "no" if reason else f"{answer.value[1]} read", reason)


def _reduce(nodes: list[Node], limits: Limits) -> Iterator[Finding]:
    """Sum a tensor over all nodes that train, by the way that gradients will take."""
    crew = [node for node in nodes if node.trains]
    if len(crew) < 2:
        return
    backend = "nccl" if all(node.gpus for node in crew) else "gloo"
    size, world = int(limits.reduce_megabytes * 2**20), len(crew)
    meeting = crew[0].address
    (opened,) = ask(
        crew[:1], lambda _, node: node.actor.open_store.remote(meeting, world, limits.timeout), limits.timeout
    )
    if opened.problem:
        yield Finding(crew[0].name, "all-reduce", False, "no", f"{meeting} can't be listened on: {opened.problem}")
        return
    answers = ask(
        crew,
        lambda rank, node: node.actor.reduce.remote(backend, meeting, opened.value, rank, world, size, limits.timeout),
        limits.timeout + 5,
    )
    for node, answer in zip(crew, answers, strict=True):
        if answer.problem:
            hint = "; GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME choose the interface (launch/env.sh)"
            yield Finding(node.name, "all-reduce", False, "no", f"{backend}: {answer.problem}{hint}")
            continue
        # A ring sends and receives 2 (n - 1) / n of the bytes at every node.
        rate = 2 * (world - 1) / world * size * 8 / answer.value / 1e6
        reason = f"{rate:.0f} Mbit/s, {limits.min_bandwidth:.0f} are asked for"
        yield Finding(node.name, "all-reduce", rate >= limits.min_bandwidth, f"{rate:.0f} Mbit/s {backend}", reason)
