"""What a fault costs: each one strikes a small real run once; prints a table and checks the curve that comes out.

    python benchmarks/faults.py data=shards/demo output=/tmp/faults [faults=[kill_worker,full_disk]]

A run of two workers in float64 is struck in the middle. After it has ended (where the fault ends it, after the same
command has been given again), its losses must be those of an undisturbed run to 1e-8. Columns: seconds until the
fault was noticed (the old workers were gone, or the command had ended with its message), seconds until the next step
was trained, and how many steps had to be trained again. `full_disk` mounts a small tmpfs and needs root.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ray.cluster_utils import Cluster

from drwr_dist import checkpoint
from drwr_dist.cli import load_options, run_verb
from drwr_dist.data.index import load_index
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


@dataclass
class Cost:
    """What one fault cost, or what went wrong."""

    fault: str
    detected: float = math.nan  # seconds
    again: float = math.nan  # seconds
    redone: int = 0  # steps
    problem: str = ""


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


# --- the faults ------------------------------------------------------------------------------------------------


def kill_worker(trial: Trial) -> Cost:
    """SIGKILL of one training worker; Ray starts the group again."""
    trial.start()
    before, old = trial.strike_at(), trial.workers()
    begin = time.monotonic()
    os.kill(trial.random.choice(old), signal.SIGKILL)
    trial.wait(lambda: not set(old) & set(trial.workers()), "rid of the old workers")
    detected = time.monotonic() - begin
    trial.training_again(1)
    return Cost("kill_worker", detected, time.monotonic() - begin, before - trial.resumed_at())


def kill_driver(trial: Trial, number: int = signal.SIGKILL, name: str = "kill_driver", spoil: str = "") -> Cost:
    """End the command by a signal, and give it again, with another number of workers."""
    trial.start()
    before = trial.strike_at()
    assert trial.process
    begin = time.monotonic()
    trial.process.send_signal(number)
    trial.ended()
    detected = time.monotonic() - begin
    before = max(before, trial.step())
    if spoil:
        damage(trial.run / checkpoint.FOLDER / checkpoint.names(trial.run)[0] / checkpoint.STATE, spoil)
    begin = time.monotonic()
    trial.start(f"workers={trial.random.choice((1, 2, 4))}")
    trial.training_again(1)
    if spoil and "passed over a damaged checkpoint" not in trial.log:
        raise TrainingError("a damaged checkpoint was not reported")
    return Cost(name, detected, time.monotonic() - begin, max(0, before - trial.resumed_at()))


def terminate_driver(trial: Trial) -> Cost:
    """SIGTERM, as before a preemption: a checkpoint, then the end; the same command goes on."""
    return kill_driver(trial, signal.SIGTERM, "terminate_driver")


def damaged_checkpoint(trial: Trial) -> Cost:
    """SIGKILL of the command, and its newest checkpoint is truncated or a bit of it flips."""
    return kill_driver(trial, name="damaged_checkpoint", spoil=trial.random.choice(("flip", "truncate")))


def damaged_shard(trial: Trial) -> Cost:
    """Remove, cut or rot a shard while it is read: the run fails with its name; mended, it goes on."""
    trial.start()
    before = trial.strike_at()
    shards = [shard.url for _, shard in load_index(trial.data).split("train")]
    victim = trial.data / trial.random.choice(shards)
    sound = victim.read_bytes()
    begin = time.monotonic()
    damage(victim, trial.random.choice(("remove", "truncate", "rot")))
    code = trial.ended()
    detected = time.monotonic() - begin
    if code != 1 or victim.name not in trial.log or "Traceback" in trial.log:
        raise TrainingError(f"exit code {code}, {victim.name} should be named: {trial.log[-500:]}")
    before = max(before, trial.step())
    victim.write_bytes(sound)
    begin = time.monotonic()
    trial.start()
    trial.training_again(1)
    return Cost("damaged_shard", detected, time.monotonic() - begin, before - trial.resumed_at())


def full_disk(trial: Trial) -> Cost:
    """Fill the disk of the run: it fails and says so, nothing is lost; with room again it goes on."""
    with small_disk(trial.storage):
        trial.start()
        before = trial.strike_at()
        begin = time.monotonic()
        fill(trial.storage / "ballast")
        code = trial.ended()
        detected = time.monotonic() - begin
        if code != 1 or "No space left" not in trial.log:
            raise TrainingError(f"exit code {code}, the full disk should be named: {trial.log[-800:]}")
        before = max(before, trial.step())
        (trial.storage / "ballast").unlink()
        begin = time.monotonic()
        trial.start()
        trial.training_again(1)
        again = time.monotonic() - begin
        if code := trial.ended():
            raise TrainingError(f"exit code {code}: {trial.log[-500:]}")
        shutil.copytree(trial.run, trial.folder / "kept")
    shutil.copytree(trial.folder / "kept", trial.run)
    return Cost("full_disk", detected, again, before - trial.resumed_at())


def kill_node(trial: Trial) -> Cost:
    """Lose a node of two for good under `workers=[1,2]`: training goes on with the other."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        trial.cluster, trial.settings = cluster.address, ("workers=[1,2]",)
        trial.start()
        before, old = trial.strike_at(), trial.workers()
        begin = time.monotonic()
        cluster.remove_node(trial.random.choice(nodes), allow_graceful=False)
        trial.wait(lambda: not set(old) & set(trial.workers()), "rid of the old workers")
        detected = time.monotonic() - begin
        trial.training_again(1)
        cost = Cost("kill_node", detected, time.monotonic() - begin, before - trial.resumed_at())
        if code := trial.ended():
            raise TrainingError(f"exit code {code}: {trial.log[-500:]}")
        return cost
    finally:
        cluster.shutdown()


_ALL = (kill_worker, kill_driver, terminate_driver, damaged_checkpoint, damaged_shard, full_disk, kill_node)
FAULTS: dict[str, Callable[[Trial], Cost]] = {function.__name__: function for function in _ALL}


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
    if checkpoint.names(run)[:2] != checkpoint.names(whole)[:2]:
        return f"checkpoints {checkpoint.names(run)}, not {checkpoint.names(whole)}"
    return "" if checkpoint.load_newest(run) else "no checkpoint"


def strike(options: FaultOptions, fault: str, name: str, seed: int) -> Cost:
    """Strike one run, see it to its end and compare it with the undisturbed one."""
    trial = Trial(options, name, random.Random(seed))
    try:
        cost = FAULTS[fault](trial)
        if code := trial.ended():
            raise TrainingError(f"exit code {code}: {trial.log[-500:]}")
        cost.problem = difference(trial.run, reference(options))
    except TrainingError as error:
        cost = Cost(fault, problem=str(error))
    finally:
        if trial.process and trial.process.poll() is None:
            trial.process.kill()
            trial.process.wait()
    if not cost.problem:
        shutil.rmtree(trial.folder)
    return cost


def main(arguments: Sequence[str]) -> int:
    options = load_options(FaultOptions, arguments, verb="faults", with_file=False)
    options.output = os.path.abspath(options.output)
    reference(options)
    print("| fault | noticed after | training again after | steps redone | curve |\n|---|---|---|---|---|")
    costs = []
    for number, fault in enumerate(options.faults or FAULTS):
        cost = strike(options, fault, fault, options.seed + number)
        costs.append(cost)
        verdict = cost.problem or "the same"
        print(f"| {fault} | {cost.detected:.1f} s | {cost.again:.1f} s | {cost.redone} | {verdict} |", flush=True)
    Path(options.output, "faults.json").write_text(json.dumps([asdict(cost) for cost in costs], indent=1))
    return int(any(cost.problem for cost in costs))


if __name__ == "__main__":
    run_verb(main)
