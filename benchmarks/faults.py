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
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ray.cluster_utils import Cluster
from struck import FaultOptions, Trial, damage, difference, fill, poison, reference, small_disk

from drwr_dist import checkpoint
from drwr_dist.cli import load_options, run_verb
from drwr_dist.data.index import load_index
from drwr_dist.errors import TrainingError


@dataclass
class Cost:
    """What one fault cost, or what went wrong."""

    fault: str
    detected: float = math.nan  # seconds
    again: float = math.nan  # seconds
    redone: int = 0  # steps
    problem: str = ""


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


def kill_node(trial: Trial, workers: str = "[1,2]", replace: bool = False) -> Cost:
    """Lose a node of two for good under `workers=[1,2]`: training goes on with the other."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        trial.cluster, trial.settings = cluster.address, (f"workers={workers}",)
        trial.start()
        before, old = trial.strike_at(), trial.workers()
        begin = time.monotonic()
        cluster.remove_node(trial.random.choice(nodes), allow_graceful=False)
        trial.wait(lambda: not set(old) & set(trial.workers()), "rid of the old workers")
        detected = time.monotonic() - begin
        if replace:
            cluster.add_node(num_cpus=1)
        trial.training_again(1)
        again = time.monotonic() - begin
        if code := trial.ended():
            raise TrainingError(f"exit code {code}: {trial.log[-500:]}")
        return Cost("replace_node" if replace else "kill_node", detected, again, before - trial.resumed_at())
    finally:
        cluster.shutdown()


def replace_node(trial: Trial) -> Cost:
    """Lose a node of two under `workers=2`; another one comes, and training goes on as soon as it is there."""
    return kill_node(trial, workers="2", replace=True)


def not_finite(trial: Trial) -> Cost:
    """Read a sample whose cameras are out of all bounds: both ranks end at its step; with sound data it goes on."""
    trial.options = replace(trial.options, every=10)  # the first epoch of a small dataset has a checkpoint, too
    key, step = poison(trial.data, trial.random, trial.options.every + 1)
    trial.start()
    trial.wait(lambda: trial.step() >= step, f"at step {step}")
    begin = time.monotonic()
    code = trial.ended()
    detected = time.monotonic() - begin
    if code != 1 or f"step {step}: the loss or its gradient is not finite" not in trial.log or key not in trial.log:
        raise TrainingError(f"exit code {code}, {key} at step {step} should be named: {trial.log[-800:]}")
    before = trial.step()
    shutil.copytree(trial.options.data, trial.data, dirs_exist_ok=True)
    begin = time.monotonic()
    trial.start()
    trial.training_again(1)
    return Cost("not_finite", detected, time.monotonic() - begin, before - trial.resumed_at())


def slow_rank(trial: Trial) -> Cost:
    """Stop a worker for 0.6 s again and again: it is named as a straggler, and nothing has to be done again."""
    trial.start()
    trial.strike_at(trial.options.every)
    victim, before, begin = trial.random.choice(trial.workers()), len(trial.log), time.monotonic()
    while f"process {victim} lets the others wait" not in trial.log[before:]:
        for number, pause in ((signal.SIGSTOP, 0.6), (signal.SIGCONT, 0.02)):
            os.kill(victim, number)
            time.sleep(pause)
    return Cost("slow_rank", time.monotonic() - begin, 0.0)


_ALL = (
    kill_worker, kill_driver, terminate_driver, damaged_checkpoint, damaged_shard, full_disk, kill_node, replace_node,
    not_finite, slow_rank,
)  # fmt: skip
FAULTS: dict[str, Callable[[Trial], Cost]] = {function.__name__: function for function in _ALL}


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
