"""A small real run that benchmarks strike: its folders, its process, what it prints, and how it compares at its end."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from drwr_dist import checkpoint
from drwr_dist.data.index import INDEX_NAME, load_index, read_sample
from drwr_dist.data.sample import split_members
from drwr_dist.data.stream import SampleTable
from drwr_dist.errors import TrainingError
from drwr_dist.monitor import METRICS, read_rows

SETTINGS = (
    "model.points=64", "model.channels=4", "model.hidden=16", "loss.grid=32", "global_batch=4", "log_every=1",
    "precision=float64", "evaluation.split=", "cluster.timeout=60", "loader.cache_megabytes=0", "validation.every=40",
)  # fmt: skip
PATIENCE = 400.0  # seconds after which a run that should have got somewhere hangs


@dataclass
class FaultOptions:
    """Strike small runs with faults and measure what each costs."""

    data: str = "shards/demo"  # folder of a dataset; it is copied, never changed
    output: str = "???"  # folder for the runs
    faults: list[str] = field(default_factory=list)  # only these; empty: all
    steps: int = 400  # of each run
    every: int = 40  # steps between checkpoints
    seed: int = 0  # of the places where the faults strike


class Trial:
    """A run that is struck: its folders, its process, what it prints."""

    def __init__(self, options: FaultOptions, name: str, random_numbers: random.Random, cluster: str = ""):
        self.options, self.name, self.random = options, name, random_numbers
        self.folder = Path(options.output, name)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.data, self.storage = self.folder / "data", self.folder / "storage"
        self.storage.mkdir(parents=True)
        shutil.copytree(options.data, self.data)
        self.cluster = cluster
        self.process: subprocess.Popen[str] | None = None
        self.settings: tuple[str, ...] = ()

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.storage / "run"

    @property
    def log(self) -> str:
        """Everything that the command has printed."""
        return (self.folder / "log").read_text()

    def start(self, *extra: str) -> None:
        """Start the command (again); what it prints goes to the end of one file."""
        steps = (f"steps={self.options.steps}", f"checkpoint.every={self.options.every}", *self.settings)
        places = (f"data={self.data}", f"storage={self.storage}", "name=run")
        where = (f"cluster.address={self.cluster}",) if self.cluster else ()
        workers = () if any(entry.startswith("workers=") for entry in (*self.settings, *extra)) else ("workers=2",)
        line = [sys.executable, "-m", "drwr_dist.train", *places, *SETTINGS, *steps, *where, *workers, *extra]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(line, stdout=log, stderr=log, text=True)

    def step(self) -> int:
        """Return the last step in the run's history."""
        history = read_rows(self.run / METRICS)
        return int(history[-1]["step"]) if history else 0

    def wait(self, condition: Callable[[], object], what: str, ends: bool = False) -> None:
        """Wait for a condition. Raises TrainingError where it takes too long, or the command ends (unless it may)."""
        assert self.process
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self.process.poll() is not None and not ends and not condition():
                raise TrainingError(f"ended with {self.process.returncode} before {what}: {self.log[-500:]}")
            if time.monotonic() > deadline:
                raise TrainingError(f"hangs: not {what} after {PATIENCE:.0f} s: {self.log[-500:]}")
            time.sleep(0.05)

    def ended(self) -> int:
        """Wait for the end of the command; return its exit code."""
        assert self.process
        self.wait(lambda: self.process and self.process.poll() is not None, "ended", ends=True)
        return int(self.process.returncode)

    def strike_at(self, step: int | None = None) -> int:
        """Wait for a random step between the second checkpoint and three quarters of the run; return where it is."""
        first, last = 2 * self.options.every, 3 * self.options.steps // 4
        chosen = step or self.random.randint(first, last)
        self.wait(lambda: self.step() >= chosen, f"at step {chosen}")
        return self.step()

    def workers(self) -> list[int]:
        """Return the processes of the training workers below the command, or below the cluster."""
        assert self.process
        return descendants(os.getpid() if self.cluster else self.process.pid, "RayTrainWorker")

    def training_again(self, resumed: int) -> None:
        """Wait until steps are trained after the so-manieth resumption."""
        self.wait(lambda: len(re.findall("resuming after step", self.log)) >= resumed, "resumed")
        self.wait(lambda: self.step() > self.resumed_at(), "training again")

    def resumed_at(self) -> int:
        """Return the step at which the run was last taken up."""
        return int(re.findall(r"resuming after step (\d+)", self.log)[-1])


def descendants(ancestor: int, name: str) -> list[int]:
    """Return the processes below one whose command line holds a name."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    entries = [line.split(None, 2) for line in table.splitlines()[1:]]
    family = {ancestor}
    for _ in range(6):
        family |= {int(pid) for pid, parent, _ in entries if int(parent) in family}
    return sorted(int(pid) for pid, _, *rest in entries if int(pid) in family and rest and name in rest[0])


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Lay a file system of 64 MiB over a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    """Write a file until its disk is full."""
    with path.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(b"0" * 4096)
        except OSError:
            pass


def damage(path: Path, kind: str) -> None:
    """Spoil a file: remove it, cut it in half, or change bits (one, or one in each KiB)."""
    content = bytearray(path.read_bytes())
    if kind == "remove":
        path.unlink()
        return
    if kind == "truncate":
        content = content[: len(content) // 2]
    elif kind == "rot":
        content[::1024] = bytes(byte ^ 0x10 for byte in content[::1024])
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def poison(data: Path, numbers: random.Random, after: int) -> tuple[str, int]:
    """Put the cameras of a training sample so far aside that its loss is infinite, with the checksum to match.

    Returns:
        The sample's key, and the step of the first epoch, `after` or later, at which a global batch of 4 has it.
    """
    index = load_index(data)
    table = SampleTable.select(index, "train")
    plan = table.plan(0, 4)
    step = numbers.randrange(after, plan.steps_per_epoch - 1)
    number = int(numbers.choice(plan.epoch_batches(0)[step].tolist()))
    shard, position = table.places[number]
    sample = read_sample(index, shard, position)
    old = split_members(sample, key=table.keys[number])["cameras.json"]
    cameras = json.loads(old)
    for camera in cameras["world_to_camera"]:
        camera[0][3] = 1e300
    spoilt = sample.replace(old, json.dumps(cameras, separators=(",", ":")).encode().ljust(len(old)))
    assert len(spoilt) == len(sample) and spoilt != sample
    path = data / index.shards[shard].url
    path.write_bytes(path.read_bytes().replace(sample, spoilt))
    content = json.loads((data / INDEX_NAME).read_text())
    content["shardlist"][shard]["crc32"][position] = zlib.crc32(spoilt)
    (data / INDEX_NAME).write_text(json.dumps(content))
    return table.keys[number], step


# --- the comparison --------------------------------------------------------------------------------------------


def reference(options: FaultOptions) -> Path:
    """Train the undisturbed run, if it isn't there yet; return its folder."""
    done = Path(options.output, "undisturbed", "storage", "run")
    if checkpoint.name_of(options.steps) not in checkpoint.names(done):
        trial = Trial(options, "undisturbed", random.Random(0))
        trial.start("workers=1")
        if trial.ended():
            raise TrainingError(f"the undisturbed run failed: {trial.log[-500:]}")
    return done


def difference(run: Path, whole: Path) -> str:
    """Say how a run's history differs from the undisturbed one; empty: not at all."""
    for name in (METRICS, "validation.jsonl"):
        one, other = read_rows(run / name), read_rows(whole / name)
        if [row["step"] for row in one] != [row["step"] for row in other]:
            return f"{name}: {len(one)} rows to step {one[-1]['step'] if one else 0}, not {len(other)}"
        key = "loss" if name == METRICS else "chamfer"
        worst = max((abs(a[key] - b[key]) / abs(b[key]) for a, b in zip(one, other, strict=True)), default=0.0)
        if not worst <= (1e-8 if name == METRICS else 1e-5):  # validation is float32
            return f"{name}: {key} differs by {worst:.1e}"
    if checkpoint.names(run)[:1] != checkpoint.names(whole)[:1]:  # SIGTERM leaves more than the regular ones
        return f"checkpoints {checkpoint.names(run)}, not {checkpoint.names(whole)}"
    return "" if checkpoint.load_newest(run) else "no checkpoint"
