"""How many small errors do the tests see? Puts them into losses, camera, silhouettes, metrics and plan, one at a time.

    python benchmarks/mutation.py sample=400 seed=0

mutmut makes every mutant (`[tool.mutmut]` in pyproject.toml says of what, and which tests look); a sample of them,
drawn from the seed and in the same order every time, is run. What has been run stays in `mutants/`: the same command
goes on.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from drwr_dist.cli import load_options

REPOSITORY = Path(__file__).parent.parent
MUTANTS = REPOSITORY / "mutants"
KILLED = (1, 3, 36, 24, -24, 152, 255)  # exit codes: a test failed, or ran for too long


@dataclass
class MutationOptions:
    """Sample the mutants of the pure parts and run the tests against each."""

    sample: int = 400  # mutants to run; 0: all
    seed: int = 0  # of the sample
    children: int = 2  # processes at the same time
    least: float = 0.85  # share that must be killed, else the exit code is 1


def found() -> dict[str, int | None]:
    """Return mutant → exit code of its tests, None where they have not run."""
    codes: dict[str, int | None] = {}
    for meta in sorted(MUTANTS.rglob("*.meta")):
        codes |= json.loads(meta.read_text())["exit_code_by_key"]
    return codes


def mutmut(*arguments: str) -> None:
    """Run mutmut; what it prints is its own business."""
    subprocess.run([sys.executable, "-m", "mutmut", *arguments], cwd=REPOSITORY, check=False)


def main(options: MutationOptions) -> int:
    """Run, count, and name the survivors."""
    children = f"--max-children={options.children}"
    mutmut("run", children, "no such mutant")  # makes the mutants, and learns which tests meet which function
    names = sorted(found())
    random.Random(options.seed).shuffle(names)
    chosen = names[: options.sample or None]
    pending = [name for name in chosen if found()[name] is None]
    if pending:
        mutmut("run", children, *pending)
    codes = {name: code for name, code in found().items() if name in set(chosen) and code is not None}
    killed = [name for name, code in codes.items() if code in KILLED]
    for name in sorted(set(codes) - set(killed)):
        print(f"survived ({codes[name]}): {name}")
    share = len(killed) / max(1, len(codes))
    print(f"{len(names)} mutants, {len(codes)} run, {len(killed)} killed: {share:.1%}")
    return 0 if share >= options.least else 1


if __name__ == "__main__":
    sys.exit(main(load_options(MutationOptions, sys.argv[1:], verb="mutation", with_file=False)))
