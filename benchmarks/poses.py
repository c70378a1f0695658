"""Are unknown cameras learned? `pose.mode=predict` against random cameras, on the demo shards.

    python benchmarks/poses.py                         # every run that has no result yet, one after another
    python benchmarks/poses.py --table                 # the table of docs/fidelity.md, from the results

Each run is `python -m drwr_dist.train config=configs/demo.yaml workers=1 pose.mode=MODE seed=SEED`, all categories at
once; it resumes from its checkpoint, and its test scores end in benchmarks/results/poses/MODE-SEED.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "poses"
MODES = ("predict", "random")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", default="runs/poses", help="folder for the runs themselves")
    parser.add_argument("--table", action="store_true", help="print the table and run nothing")
    options = parser.parse_args()
    if not options.table:
        RESULTS.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for mode in MODES:
                path = RESULTS / f"{mode}-{seed}.json"
                if not path.exists():
                    path.write_text(json.dumps(run(mode, seed, Path(options.runs)), indent=1) + "\n")
    print(table())


def run(mode: str, seed: int, storage: Path) -> dict[str, Any]:
    """Train one run, or go on with it, and return its scores on the test split."""
    arguments = [
        f"config={ROOT / 'configs' / 'demo.yaml'}",
        f"data={ROOT / 'shards' / 'demo'}",
        "workers=1",
        f"pose.mode={mode}",
        f"seed={seed}",
        f"name={mode}-{seed}",
        f"storage={storage.absolute()}",
        "evaluation.references=false",
        "evaluation.predictions=false",
    ]
    subprocess.run([sys.executable, "-m", "drwr_dist.train", *arguments], check=True)
    result = json.loads((storage / f"{mode}-{seed}" / "result.json").read_text())
    block = result["splits"]["test"]
    chamfer = {"": block["overall"]["chamfer"]} | {c: row["chamfer"] for c, row in block["categories"].items()}
    poses = {"": block["poses"]} | block["poses"]["categories"]
    return {
        "steps": result["step"],
        **{
            name or "all": {
                "chamfer": round(chamfer[name], 3),
                "rotation_error_median": round(poses[name]["rotation_error_median"], 2),
                "accuracy_30": round(poses[name]["accuracy_30"], 3),
            }
            for name in chamfer
        },
    }


def table() -> str:
    """Draw the results as a Markdown table: mean over seeds ± standard deviation."""
    lines = [
        "| | cameras | seeds | median rotation error | within 30° | aligned Chamfer × 100 |",
        "|---|---|---|---|---|---|",
    ]
    found = {mode: [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{mode}-*.json"))] for mode in MODES}
    categories = [name for name in (found["predict"] or found["random"])[0] if name != "steps"]
    for category in categories:
        for mode, results in found.items():
            if results:
                error = spread([row[category]["rotation_error_median"] for row in results], 1)
                accuracy = spread([100 * row[category]["accuracy_30"] for row in results], 0)
                chamfer = spread([row[category]["chamfer"] for row in results], 2)
                name = "predicted" if mode == "predict" else "random"
                lines.append(f"| {category} | {name} | {len(results)} | {error}° | {accuracy} % | {chamfer} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    mean = f"{np.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.{digits}f}"


if __name__ == "__main__":
    main()
