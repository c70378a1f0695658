"""Random faults over small runs: each run is struck several times and must end with the curve of an undisturbed one.

    python benchmarks/chaos.py output=/tmp/chaos count=100 seed=0 [results=FILE] [minutes=9]

A round is a run of one or two workers, in float64, on a small disk of its own. Every round is struck by faults
drawn from `KINDS`, at random steps from before the first checkpoint to the end: kinds, places and moments follow from
(seed, round), as far as the machine's speed lets them. After a fault the same command goes on, with another number of
workers where it had ended. Checked are: what the command says and returns, that it goes on from the newest sound
checkpoint, and at the end the whole curve, the validation scores and the checkpoints against the undisturbed run.

`results` (JSON lines, one a round) holds what was found; rounds that are in it are not run again, so that a call with
`minutes` can be repeated until all faults are done, and calls with different seeds can share the work. A failed round
leaves its folder behind. Needs root for its disks.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster
from struck import FaultOptions, Trial, damage, descendants, difference, fill, reference, small_disk

from drwr_dist import checkpoint
from drwr_dist.cli import load_options, run_verb
from drwr_dist.data.index import load_index
from drwr_dist.errors import TrainingError
from drwr_dist.monitor import METRICS, read_rows

PLACES = ("cluster", "cluster", "cluster", "here")  # of rounds: a cluster that outlives them, or Ray of their own
WORKERS = ("1", "1", "1", "2", "2", "[1,2]")
STARTING = 20.0  # seconds within which `kill_start` strikes


@dataclass
class ChaosOptions(FaultOptions):
    """Strike small runs with random faults."""

    steps: int = 300  # of each run
    every: int = 20  # steps between checkpoints
    count: int = 100  # faults to strike with
    per_run: int = 5  # faults that strike a run
    place: str = ""  # here | cluster: only rounds there; empty: in turn
    results: str = ""  # file of what was found; empty: <output>/chaos.jsonl
    minutes: float = 0.0  # after which nothing is struck and no run begun any more; 0: until all is done


class StruckRun(Trial):
    """A run that is struck again and again."""

    nodes: list[Any]
    ray_cluster: Cluster | None = None

    def start_again(self) -> None:
        """Give the same command again, with some number of workers."""
        self.start(f"workers={self.random.choice(WORKERS)}")

    def signal_all(self) -> None:
        """SIGKILL of the command and of every process that belongs to it, as when the power goes."""
        assert self.process
        family = [self.process.pid] if self.cluster else descendants(self.process.pid, "")
        for process in {self.process.pid, *family, *self.workers()}:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.ended()

    def expect_failure(self, name: str) -> None:
        """Wait for the end of the command. Raises TrainingError unless it fails in one line with this name in it."""
        log = len(self.log)
        code = self.ended()
        told = self.log[log:] if name in self.log[log:] else self.log[-1500:]
        if code != 1 or name not in told or "Traceback" in told:
            raise TrainingError(f"exit code {code}, {name!r} should be named: {self.log[-1500:]}")


# --- the faults: each returns with the command under way again ---------------------------------------------------


def kill_worker(run: StruckRun) -> None:
    """SIGKILL of one worker."""
    workers = run.workers()
    os.kill(run.random.choice(workers), signal.SIGKILL)
    run.wait(lambda: not set(workers) & set(run.workers()), "rid of the old workers")


def kill_node(run: StruckRun) -> None:
    """Take a node with a worker away, and put another in its place."""
    if not run.ray_cluster:
        return power_off(run)
    busy = [node for node in run.nodes if descendants(raylet_of(node), "RayTrainWorker")]
    node = run.random.choice(busy or run.nodes)
    run.nodes.remove(node)
    run.ray_cluster.remove_node(node, allow_graceful=False)
    time.sleep(run.random.uniform(0, 3))
    run.nodes.append(run.ray_cluster.add_node(num_cpus=2))
    return None


def raylet_of(node: Any) -> int:
    """Return the process of a node of `ray.cluster_utils.Cluster` that starts its workers."""
    return int(node.all_processes["raylet"][0].process.pid)


def kill_driver(run: StruckRun) -> None:
    """SIGKILL of the command."""
    assert run.process
    run.process.kill()
    run.ended()
    run.start_again()


def power_off(run: StruckRun) -> None:
    """SIGKILL of the command and all its processes."""
    run.signal_all()
    run.start_again()


def kill_start(run: StruckRun) -> None:
    """SIGKILL of the command, and again while it starts: two faults."""
    kill_driver(run)
    time.sleep(run.random.uniform(0.5, STARTING))
    kill_driver(run)


def terminate(run: StruckRun) -> None:
    """SIGTERM, as before a preemption."""
    assert run.process
    run.process.send_signal(signal.SIGTERM)
    code = run.ended()
    if code not in (130, 0) or (code == 130 and "interrupted after step" not in run.log):
        raise TrainingError(f"exit code {code} after SIGTERM: {run.log[-500:]}")
    run.start_again()


def damaged_checkpoint(run: StruckRun) -> None:
    """SIGKILL of the command and all its processes, and the newest checkpoint is spoilt."""
    run.signal_all()  # so that no worker writes any more
    known = checkpoint.names(run.run)
    if len(known) > 1:
        file = run.random.choice((checkpoint.STATE, checkpoint.META))
        spoil = ("flip", "truncate", "remove") if file == checkpoint.STATE else ("truncate", "remove")
        damage(run.run / checkpoint.FOLDER / known[0] / file, run.random.choice(spoil))
    told = run.log.count("passed over a damaged checkpoint")
    run.start_again()
    if len(known) > 1:
        run.wait(lambda: run.log.count("passed over a damaged checkpoint") > told, "told of the damage")


def damaged_shard(run: StruckRun) -> None:
    """Spoil a shard: the command fails with its name; mended, it goes on."""
    shards = [shard.url for _, shard in load_index(run.data).split("train")]
    victim = run.data / run.random.choice(shards)
    sound = victim.read_bytes()
    damage(victim, run.random.choice(("remove", "truncate", "rot")))
    run.expect_failure(victim.name)
    victim.write_bytes(sound)
    run.start_again()


def full_disk(run: StruckRun) -> None:
    """Fill the run's disk: the command fails and says so; with room again it goes on."""
    fill(run.storage / "ballast")
    run.expect_failure("No space left")
    if run.random.random() < 0.5:  # and again on a disk that is still full
        run.start_again()
        run.expect_failure("No space left")
    (run.storage / "ballast").unlink()
    run.start_again()


_ALL = (
    kill_worker, kill_node, kill_driver, power_off, kill_start, terminate, damaged_checkpoint, damaged_shard, full_disk,
)  # fmt: skip
KINDS: dict[str, Callable[[StruckRun], None]] = {function.__name__: function for function in _ALL}
OFTEN = ("kill_worker", "kill_worker", "kill_node")


# --- a round -----------------------------------------------------------------------------------------------------


def deck(options: ChaosOptions, number: int) -> list[str]:
    """Return the faults of a round: all kinds in a random order, some of them more often, then in another order."""
    kinds, first = sorted(options.faults or [*KINDS, *OFTEN]), number * options.per_run
    cards: list[str] = []
    while len(cards) < first + options.per_run:
        shuffled = list(kinds)
        random.Random(f"{options.seed}-{len(cards)}").shuffle(shuffled)
        cards += shuffled
    return cards[first : first + options.per_run]


def strike(run: StruckRun, kind: str, target: int) -> dict[str, Any] | None:
    """Strike at a step, and see that the run goes on from its newest sound checkpoint.

    Returns:
        What was done; None where the run had ended before.
    """
    assert run.process
    process = run.process
    run.wait(lambda: run.step() >= target or process.poll() is not None, f"at step {target}", ends=True)
    if process.poll() is not None:
        return None
    before, resumptions = run.step(), run.log.count("resuming after step")
    kept = checkpoint.names(run.run)
    begin = time.monotonic()
    KINDS[kind](run)
    kept = kept[1:] if kind == "damaged_checkpoint" else kept
    row, since, process = {"fault": kind, "step": before}, time.time(), run.process

    def again() -> bool:
        if process.poll() == 0:
            return True
        if kept:
            return run.log.count("resuming after step") > resumptions
        return run.step() > 0 and (run.run / METRICS).stat().st_mtime > since

    run.wait(again, "training again")
    if kept and process.poll() is None:
        if run.resumed_at() < checkpoint.step_of(kept[0]):
            raise TrainingError(f"{kind}: resumed after step {run.resumed_at()}, although {kept[0]} was there")
        row["resumed"] = run.resumed_at()
    return row | {"seconds": round(time.monotonic() - begin, 1)}


def play(
    options: ChaosOptions, number: int, cluster: Cluster | None, nodes: list[Any], deadline: float
) -> dict[str, Any]:
    """Run a round, which is struck until the deadline; return its row of the results."""
    numbers = random.Random(f"{options.seed}-{number}")
    run = StruckRun(options, f"round-{options.seed}-{number:03d}", numbers, cluster.address if cluster else "")
    run.ray_cluster, run.nodes = cluster, nodes
    run.settings = ("cluster.max_failures=20",)
    row: dict[str, Any] = {
        "round": number,
        "seed": options.seed,
        "place": "cluster" if cluster else "here",
        "faults": [],
    }
    begin = time.monotonic()
    with small_disk(run.storage):
        try:
            targets = sorted(numbers.randint(5, 9 * options.steps // 10) for _ in range(options.per_run))
            run.start_again()
            for kind, target in zip(deck(options, number), targets, strict=True):
                if time.monotonic() > deadline:
                    break
                done = strike(run, kind, target)
                row["faults"] += [done] if done else []
                row["faults"] += [{"fault": "kill_driver"}] if done and kind == "kill_start" else []
            if code := run.ended():
                raise TrainingError(f"exit code {code}: {run.log[-1500:]}")
            row["problem"] = difference(run.run, reference(options))
        except TrainingError as error:
            row["problem"] = str(error)
        finally:
            if run.process and run.process.poll() is None:
                run.process.kill()
                run.process.wait()
        if row["problem"]:
            shutil.copytree(run.storage, run.folder / "kept", ignore_dangling_symlinks=True)
    if not row["problem"]:
        shutil.rmtree(run.folder)
    return row | {"seconds": round(time.monotonic() - begin)}


@contextmanager
def a_cluster(wanted: bool) -> Iterator[tuple[Cluster | None, list[Any]]]:
    """Start a head that takes no workers, and two nodes that take two each, where they are wanted."""
    if not wanted:
        yield None, []
        return
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        cluster.wait_for_nodes()
        yield cluster, nodes
    finally:
        cluster.shutdown()


def main(arguments: Sequence[str]) -> int:
    options = load_options(ChaosOptions, arguments, verb="chaos", with_file=False)
    options.output = os.path.abspath(options.output)
    path = Path(options.results or Path(options.output, "chaos.jsonl"))
    deadline = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    reference(options)
    places = [options.place] if options.place else PLACES
    with a_cluster("cluster" in places) as (cluster, nodes):
        while time.monotonic() < deadline:
            rows = read_rows(path)
            if sum(len(row["faults"]) for row in rows) >= options.count:
                break
            known = {row["round"] for row in rows if row["seed"] == options.seed}
            number = next(n for n in count() if n not in known and PLACES[n % len(PLACES)] in places)
            row = play(options, number, cluster if PLACES[number % len(PLACES)] == "cluster" else None, nodes, deadline)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            struck = ", ".join(f"{fault['fault']} at {fault.get('step', 'once more')}" for fault in row["faults"])
            verdict = row["problem"] or "the same curve"
            print(f"round {number} ({row['place']}, {row['seconds']} s): {struck}: {verdict}", flush=True)
    return summary(read_rows(path))


def summary(rounds: list[dict[str, Any]]) -> int:
    """Print the count of what was found; return 1 where a round failed."""
    failed = [row for row in rounds if row["problem"]]
    kinds = Counter(fault["fault"] for row in rounds for fault in row["faults"])
    told = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items()))
    print(f"{kinds.total()} faults ({told}) over {len(rounds)} runs; {len(failed)} runs failed")
    return int(bool(failed))


if __name__ == "__main__":
    run_verb(main)
