"""What a step costs over a slow link: two workers in network namespaces of their own, joined by a throttled cable.

    python benchmarks/links.py                       # as root on Linux, with iproute2; results/links-<date>.json
    python benchmarks/links.py --rates 1000 100 --rounds 5 --output none

The paper's network (55 MB of gradients) is trained on random images in real gloo processes over DDP, one thread each,
as `communication` says; the loss is a trifle, so that the exchange is what is left. The cable is a veth pair under
`tc tbf`. Times are wall seconds of a forward and backward pass and its share of the exchange, medians; bytes are those
that left a worker's interface. Nothing stays: the namespaces end with their processes.

Two numbers are fitted for scaling.py. An exchange with nothing beside it takes fixed + bytes / (efficiency · rate). DDP
sends while the backward pass goes on: a step takes longer by the exchange less `overlap` of the backward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from measuring import ROOT, provenance, save, summary

from drwr_dist.cli import load_options
from drwr_dist.config import CommunicationConfig, TrainConfig
from drwr_dist.engine import communication, layout
from drwr_dist.model import AllHeads, build_network

WAIT = 'read; exec "$@"'  # for the cable
DEVICE, PORT = "cable", 29400
ADDRESSES = ("10.99.7.1", "10.99.7.2")
OBJECTS = 4  # images a worker and step
# name -> communication, passes that a measurement makes
CHOICES: dict[str, tuple[CommunicationConfig, int]] = {
    "alone": (CommunicationConfig(), 1),
    "gradients": (CommunicationConfig(), 1),
    "bfloat16": (CommunicationConfig(compression="bfloat16"), 1),
    "accumulate-4": (CommunicationConfig(accumulate=4), 4),
    "average-16": (CommunicationConfig(average_every=16), 1),
}
EXCHANGES = {"exchange": 1, "quarter": 4}  # without a network: the gradient's numbers, or every fourth


class Trainee:
    """One worker's network under one choice."""

    def __init__(self, choice: str) -> None:
        self.choice, (self.settings, self.passes) = choice, CHOICES[choice]
        config = load_options(TrainConfig, [f"config={ROOT / 'configs' / 'paper.yaml'}"], verb="benchmark")
        torch.manual_seed(0)
        self.model = build_network(config, 128)
        layout.arrange(self.model, torch.device("cpu"), torch.float32)
        self.network = communication.distributed(AllHeads(self.model), torch.device("cpu"), self.settings)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self.backward = 0.0  # seconds of the last backward pass
        self.images = torch.rand(OBJECTS, 3, 128, 128).contiguous(memory_format=torch.channels_last)

    def step(self) -> float:
        """Return the seconds of a pass with its share of the exchange and the update."""
        begin = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        for number in range(self.passes):
            together = self.choice in ("gradients", "bfloat16", "accumulate-4") and number == self.passes - 1
            with communication.exchanging(self.network, together):
                loss = self.network(self.images).points.square().mean()
                started = time.perf_counter()
                loss.backward()
                self.backward = time.perf_counter() - started
        self.optimizer.step()
        seconds = time.perf_counter() - begin
        if self.settings.average_every > 1:
            begin = time.perf_counter()
            communication.average(self.model, self.optimizer)
            seconds += (time.perf_counter() - begin) / self.settings.average_every
        return seconds / self.passes


class Exchange:
    """An all-reduce of as many numbers as the gradient has, in buckets as DDP's, and nothing beside it."""

    settings, passes, backward = CommunicationConfig(), 1, 0.0

    def __init__(self, parameters: int) -> None:
        self.buckets = torch.zeros(parameters).split(25 * 2**18)

    def step(self) -> float:
        """Return its seconds."""
        begin = time.perf_counter()
        for work in [dist.all_reduce(bucket, async_op=True) for bucket in self.buckets]:
            work.wait()
        return time.perf_counter() - begin


def worker(rank: int) -> None:
    """Make the step that each line of the standard input names, and answer with a JSON line."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE
    dist.init_process_group("gloo", init_method=f"tcp://{ADDRESSES[0]}:{PORT}", rank=rank, world_size=2)
    trainees: dict[str, Any] = {choice: Trainee(choice) for choice in CHOICES}
    parameters = sum(parameter.numel() for parameter in trainees["alone"].model.parameters())
    trainees |= {name: Exchange(parameters // divisor) for name, divisor in EXCHANGES.items()}
    for trainee in trainees.values():  # DDP arranges its buckets in the first steps
        trainee.step()
        trainee.step()
    print(json.dumps({"parameters": parameters}), flush=True)
    for line in sys.stdin:
        trainee = trainees[line.strip()]
        dist.barrier()
        before = bytes_sent()
        seconds = trainee.step()
        dist.barrier()
        sent = (bytes_sent() - before) / trainee.passes / trainee.settings.average_every
        print(json.dumps({"seconds": seconds, "backward": trainee.backward, "bytes": round(sent)}), flush=True)


def bytes_sent() -> int:
    """Return the bytes that have left this namespace's end of the cable."""
    rows = [line.split(":") for line in Path("/proc/self/net/dev").read_text().splitlines() if ":" in line]
    return int(next(fields for name, fields in rows if name.strip() == DEVICE).split()[8])


class Cable:
    """Two workers, each in its own network, and the cable between them."""

    def __init__(self) -> None:
        command = [sys.executable, __file__, "--rank"]
        self.workers = [
            subprocess.Popen(
                ["unshare", "--net", "--kill-child", "--fork", "bash", "-c", WAIT, "-", *command, str(rank)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment(),
            )
            for rank in range(2)
        ]  # fmt: skip
        self.places = [_child(process.pid) for process in self.workers]
        one, other = (str(place) for place in self.places)
        _run("ip", "link", "add", DEVICE, "netns", one, "type", "veth", "peer", "name", DEVICE, "netns", other)
        for place, address in zip(self.places, ADDRESSES, strict=True):
            self.inside(place, "ip", "address", "add", f"{address}/24", "dev", DEVICE)
            self.inside(place, "ip", "link", "set", DEVICE, "up")
            self.inside(place, "ip", "link", "set", "lo", "up")
        for process in self.workers:
            self.tell(process, "go")
        self.parameters = int(self.answer()["parameters"])
        self.answer(1)

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.workers:
            process.kill()
            process.wait()

    def throttle(self, megabits: float | None) -> None:
        """Let so many megabits a second through each way; None: all that the machine can do."""
        for place in self.places:
            if megabits is None:
                self.inside(place, "tc", "qdisc", "replace", "dev", DEVICE, "root", "pfifo")
            else:
                burst = max(64, int(megabits / 2))  # kB: 4 ms; the kernel's clock must not be what limits
                rate = ("rate", f"{megabits}mbit", "burst", f"{burst}kb", "latency", "100ms")
                self.inside(place, "tc", "qdisc", "replace", "dev", DEVICE, "root", "tbf", *rate)

    def measure(self, choice: str) -> dict[str, Any]:
        """Let both make a step; return what rank 0 says."""
        for process in self.workers:
            self.tell(process, choice)
        _, found = self.answer(1), self.answer()
        return found

    def tell(self, process: subprocess.Popen[str], line: str) -> None:
        """Send a worker a line."""
        assert process.stdin
        process.stdin.write(line + "\n")
        process.stdin.flush()

    def answer(self, rank: int = 0) -> dict[str, Any]:
        """Read a worker's next line."""
        stream = self.workers[rank].stdout
        assert stream
        line = stream.readline()
        if not line:
            raise SystemExit("a worker ended; its error is above")
        found: dict[str, Any] = json.loads(line)
        return found

    def inside(self, place: int, *command: str) -> None:
        """Run a command in a worker's network."""
        _run("nsenter", "-t", str(place), "-n", *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, env=_environment())


def _environment() -> dict[str, str]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _child(pid: int) -> int:
    """Wait until a process has a child and return its pid."""
    for _ in range(200):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.05)
    raise SystemExit("unshare started nothing")


def fit(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Fit the exchange under a throttle, in relative error, and how much of a backward pass hides it."""
    chosen = [row for row in rows if row["megabits"] and row["choice"] in EXCHANGES]
    ideal = np.array([row["bytes"] * 8 / (row["megabits"] * 1e6) for row in chosen])
    took = np.array([row["seconds"]["median"] for row in chosen])
    design = np.stack([np.ones_like(ideal), ideal], 1) / took[:, None]
    (fixed, slope), *_ = np.linalg.lstsq(design, np.ones_like(took), rcond=None)
    errors = (fixed + slope * ideal) / took - 1
    places = {(row["megabits"], row["choice"]): row for row in rows}
    hidden = [
        (exchange["seconds"]["median"] - places[rate, "gradients"]["extra"]) / places[rate, "alone"]["backward"]
        for (rate, choice), exchange in places.items()
        if choice == "exchange"
    ]
    return {
        "fixed_seconds": round(float(fixed), 4),
        "efficiency": round(float(1 / slope), 3),
        "largest_relative_error": round(float(abs(errors).max()), 3),
        "overlap": round(float(np.clip(np.median(hidden), 0, 1)), 2),
    }


def measure(rates: list[float], rounds: int) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    with Cable() as cable:
        for megabits in [None, *rates]:
            cable.throttle(megabits)
            found: dict[str, list[dict[str, Any]]] = {choice: [] for choice in [*CHOICES, *EXCHANGES]}
            for _ in range(rounds):
                for choice, answers in found.items():
                    answers.append(cable.measure(choice))
            medians = {choice: statistics.median(a["seconds"] for a in answers) for choice, answers in found.items()}
            for choice, answers in found.items():
                row = {"megabits": megabits, "choice": choice, "bytes": statistics.median(a["bytes"] for a in answers)}
                row |= {"seconds": summary([answer["seconds"] for answer in answers])}
                row |= {"backward": round(statistics.median(answer["backward"] for answer in answers), 4)}
                row |= {"extra": round(medians[choice] - medians["alone"], 4)} if choice in CHOICES else {}
                print(row, flush=True)
                rows.append(row)
        parameters = cable.parameters
    return {"about": provenance(), "parameters": parameters, "objects": OBJECTS, "rows": rows, "fit": fit(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", type=float, default=[2000, 1000, 500, 200], help="megabits a second")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", default="", help="JSON to write; none: nothing")
    parser.add_argument("--rank", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank >= 0:
        worker(options.rank)
        return
    results = measure(options.rates, options.rounds)
    print(results["fit"])
    save("links", results, options.output)


if __name__ == "__main__":
    main()
