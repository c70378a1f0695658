"""What a step costs on 8 … 1024 GPUs, and which `communication` to choose: a model to feed with one's own numbers.

    python benchmarks/scaling.py                                       # the tables of docs/scaling.md
    python benchmarks/scaling.py --bench FILE --objects 32             # python -m drwr_dist.bench … bench_output=FILE
    python benchmarks/scaling.py --pass-seconds 0.02 --network 3.1e9   # 25 Gbit/s a node

Of a pass (forward, loss, backward) on one GPU, an exchange of B bytes over n GPUs, g in a node, m nodes, takes

    latency · 2 ⌈log₂ n⌉ + max(2 (g - 1) / g · B / inside, 2 (m - 1) / m · B / (efficiency · network))

as rings that pass through every GPU and leave each node once; the slower kind of link decides. DDP hides as much of it
as `overlap` of the backward pass takes. Every step, under local SGD too, ranks agree with a few numbers and wait for
the slowest: latency · 2 ⌈log₂ n⌉ + jitter · √(2 ln n). `efficiency` and `overlap` come from links.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from measuring import RESULTS

GPUS = (1, 8, 16, 64, 256, 1024)
NETWORKS = {"10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9, "8 × 400 Gbit/s": 400e9}  # bytes a second and node
ENOUGH = 0.9  # of the objects a second that as many GPUs would make alone


@dataclass(frozen=True)
class Machine:
    """One's own numbers; seconds and bytes."""

    pass_seconds: float = 0.0240  # forward, loss and backward of `objects` objects on one GPU: results/gpu-*.json
    backward_seconds: float = 0.0024  # of them, the backward pass through the network
    update_seconds: float = 0.0011  # clipping and optimizer
    objects: int = 32  # of a pass
    gradient_bytes: float = 54.6e6  # float32; the paper's network with 2000 points
    node: int = 8  # GPUs in a node
    inside: float = 200e9  # bytes a second and GPU within a node
    network: float = 12.5e9  # bytes a second and node
    latency: float = 20e-6  # of a message between nodes
    efficiency: float = 0.9  # of the network's rate that an exchange gets
    overlap: float = 0.5  # share of the backward pass that can hide an exchange
    jitter: float = 0.0005  # standard deviation of a pass
    epoch: int = 4744  # objects of the training split: chairs of ShapeNet v1


@dataclass(frozen=True)
class Choice:
    """A setting, from the one that changes training least."""

    name: str
    bytes: float = 1.0  # of the gradient's in float32
    passes: int = 1  # accumulated in a step, with as many times larger a global batch
    period: int = 1  # steps between averages of weights and both moments


CHOICES = (
    Choice("as it is"),
    Choice("compression=bfloat16", bytes=0.5),
    Choice("bfloat16, accumulate=4", bytes=0.5, passes=4),
    Choice("average_every=20", bytes=3.0, period=20),
    Choice("average_every=50, accumulate=4", bytes=3.0, passes=4, period=50),
)


def exchange_seconds(machine: Machine, size: float, gpus: int) -> float:
    """Return the seconds of an all-reduce of `size` bytes."""
    inside, nodes = min(machine.node, gpus), math.ceil(gpus / machine.node)
    within = 2 * (inside - 1) / inside * size / machine.inside
    between = 2 * (nodes - 1) / nodes * size / (machine.efficiency * machine.network)
    return _hops(machine, gpus) + max(within, between)


def _hops(machine: Machine, gpus: int) -> float:
    return machine.latency * 2 * math.ceil(math.log2(gpus)) if gpus > 1 else 0.0


def step_seconds(machine: Machine, choice: Choice, gpus: int) -> float:
    """Return the seconds of an optimizer step."""
    work = choice.passes * machine.pass_seconds + machine.update_seconds
    if gpus == 1:
        return work
    sent = exchange_seconds(machine, choice.bytes * machine.gradient_bytes, gpus)
    hidden = machine.overlap * machine.backward_seconds if choice.period == 1 else 0.0
    waits = _hops(machine, gpus) + machine.jitter * math.sqrt(2 * math.log(gpus) * choice.passes)
    return work + max(0.0, sent - hidden) / choice.period + waits


def efficiency(machine: Machine, choice: Choice, gpus: int) -> float:
    """Return the objects a second and GPU, over those of one GPU alone that makes as many passes a step."""
    return step_seconds(machine, choice, 1) / step_seconds(machine, choice, gpus)


def recommended(machine: Machine, gpus: int) -> Choice:
    """Return the choice that changes training least and is efficient enough, or else the most efficient one."""
    good = [choice for choice in CHOICES if efficiency(machine, choice, gpus) >= ENOUGH]
    return good[0] if good else max(CHOICES, key=lambda choice: efficiency(machine, choice, gpus))


def table(machine: Machine) -> str:
    """Draw efficiencies and recommendations as a Markdown table."""
    lines = ["| GPUs | " + " | ".join(choice.name for choice in CHOICES) + " | recommended | objects a step |"]
    lines.append("|---" * (len(CHOICES) + 3) + "|")
    for gpus in GPUS[1:]:
        best = recommended(machine, gpus)
        shares = " | ".join(f"{efficiency(machine, choice, gpus):.0%}" for choice in CHOICES)
        objects = gpus * best.passes * machine.objects
        mark = " (over an epoch)" if objects > machine.epoch else ""
        lines.append(f"| {gpus} | {shares} | {best.name} | {objects}{mark} |")
    return "\n".join(lines)


def from_files(machine: Machine, bench: str) -> Machine:
    """Take what was measured: the newest links-*.json, and the output of `python -m drwr_dist.bench`."""
    links = sorted(RESULTS.glob("links-*.json"))
    if links:
        fit = json.loads(links[-1].read_text())["fit"]
        machine = dataclasses.replace(machine, efficiency=min(1.0, fit["efficiency"]), overlap=fit["overlap"])
    if bench:
        steps = json.loads(Path(bench).read_text())["steps"]
        seconds = steps["seconds"]
        machine = dataclasses.replace(
            machine,
            pass_seconds=seconds["forward"] + seconds["loss"] + seconds["backward"],
            backward_seconds=seconds["backward"],
            update_seconds=seconds["optimizer"],
            gradient_bytes=steps["gradient"],
        )
    return machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="", help="JSON that python -m drwr_dist.bench bench_output=FILE has written")
    for field in dataclasses.fields(Machine):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=None)
    options = parser.parse_args()
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Machine)}
    given = {name: value for name, value in given.items() if value is not None}
    machine = dataclasses.replace(from_files(Machine(), options.bench), **given)
    networks = {"the network": machine.network} if "network" in given else NETWORKS
    for name, rate in networks.items():
        print(f"\n{name} a node\n\n{table(dataclasses.replace(machine, network=rate))}")


if __name__ == "__main__":
    main()
