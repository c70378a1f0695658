"""Random faults over small runs: after each, the same command must end with the curve of an undisturbed run.

    python benchmarks/chaos.py output=/tmp/chaos rounds=100 seed=0

Every round draws one of the faults of benchmarks/faults.py and where it strikes, as a function of (seed, round).
Rounds that are in `<output>/rounds.jsonl` are not run again; a failed round leaves its folder behind.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from faults import FAULTS, FaultOptions, reference, strike

from drwr_dist.cli import load_options, run_verb
from drwr_dist.monitor import read_rows

ROUNDS = "rounds.jsonl"


@dataclass
class ChaosOptions(FaultOptions):
    """Strike small runs with random faults."""

    rounds: int = 100  # how many


def main(arguments: Sequence[str]) -> int:
    options = load_options(ChaosOptions, arguments, verb="chaos", with_file=False)
    options.output = os.path.abspath(options.output)
    reference(options)
    path = Path(options.output, ROUNDS)
    known = {row["round"] for row in read_rows(path)}
    for number in range(options.rounds):
        if number in known:
            continue
        seed = options.seed * 10**6 + number
        fault = random.Random(seed).choice(sorted(options.faults or FAULTS))
        cost = strike(options, fault, f"round-{number:03d}", seed)
        with path.open("a") as file:
            file.write(json.dumps({"round": number, **asdict(cost)}) + "\n")
        print(f"round {number}: {fault}: {cost.problem or 'the same curve'}", flush=True)
    rounds = read_rows(path)
    failed = [row for row in rounds if row["problem"]]
    print(f"{len(rounds)} rounds, {len(failed)} failed; {dict(Counter(row['fault'] for row in rounds))}")
    return int(bool(failed))


if __name__ == "__main__":
    run_verb(main)
