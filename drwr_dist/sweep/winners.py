"""What a sweep leaves behind: ready-to-train configurations, and the winners' numbers on the test split, once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from drwr_dist.config import TuneConfig, to_plain
from drwr_dist.evaluate import EvaluateOptions, evaluate_run
from drwr_dist.run import load_result, load_run
from drwr_dist.sweep import trials as journal
from drwr_dist.sweep.measuring import SPLIT, loss_of
from drwr_dist.sweep.selection import mean_ranks
from drwr_dist.sweep.space import apply
from drwr_dist.sweep.trials import FINISHED, Trial

RESULT = "result.json"
SHARED = "shared"


def best_file(sweep: Path, name: str) -> Path:
    """Return the path of a winner's configuration: of a category, or the shared one."""
    return sweep / f"best-{name}.yaml"


def write_configurations(
    sweep: Path, config: TuneConfig, best: dict[str, Trial], shared: Sequence[Trial], categories: list[str]
) -> None:
    """Write best-<category>.yaml and best-shared.yaml, each a configuration for `python -m drwr_dist.train`."""
    metric = config.sweep.metric
    for category, trial in best.items():
        assert trial.last is not None
        note = f"{metric} {trial.last['value']:.4g} on {category}, split {SPLIT}"
        _write_configuration(sweep, config, category, [category], trial, note)
    if shared:
        values = ", ".join(f"{trial.category} {trial.last['value']:.4g}" for trial in shared if trial.last)
        _write_configuration(
            sweep, config, SHARED, categories, shared[0], f"best mean rank; {metric} on split {SPLIT}: {values}"
        )


def _write_configuration(
    sweep: Path, config: TuneConfig, name: str, categories: list[str], trial: Trial, note: str
) -> None:
    chosen = apply(config, trial.parameters)
    chosen.name, chosen.data.categories, chosen.overwrite = f"best-{name}", categories, False
    path = best_file(sweep, name)
    lines = [f"# candidate {trial.candidate} of sweep {config.name}: {note}"]
    lines += [f"#     python -m drwr_dist.train config={path}"]
    for entry in trial.lineage:
        lines += [f"# until step {entry['step']}: {json.dumps(entry['replaced'])}, then weights of {entry['donor']}"]
    partial = sweep / f".{path.name}.partial"
    text = "\n".join(lines) + "\n" + yaml.safe_dump(to_plain(chosen), sort_keys=False)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def measure_on_test(sweep: Path, winners: Sequence[Trial], split: str, console: Console) -> dict[str, dict[str, Any]]:
    """Return each winner's results on the test split, measured where they are not yet: trial id -> block."""
    blocks = {}
    for trial in winners:
        run = journal.folder(sweep, trial)
        found = load_result(run).get("splits", {}).get(split)
        if found is None:
            options = EvaluateOptions(str(run), split=split, categories=[trial.category], references=False)
            found = evaluate_run(load_run(run), options, console).block
        blocks[trial.id] = found
    return blocks


def write_sweep_result(
    sweep: Path,
    config: TuneConfig,
    all_trials: Sequence[Trial],
    best: dict[str, Trial],
    shared: Sequence[Trial],
    test: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    """Write result.json: the winners with their validation and test numbers, beside the default's on validation."""
    metric = config.sweep.metric
    categories = sorted({trial.category for trial in all_trials})
    ranks = mean_ranks(all_trials, categories, metric)
    result: dict[str, Any] = {
        "metric": metric,
        "split": SPLIT,
        "test_split": config.sweep.test_split,
        "trials": {state: sum(t.state == state for t in all_trials) for state in sorted({t.state for t in all_trials})},
        "best": {name: _winner(trial, all_trials, test, metric) for name, trial in best.items()},
        "shared": {
            "candidate": shared[0].candidate if shared else None,
            "mean_rank": ranks.get(shared[0].candidate) if shared else None,
            "default_mean_rank": ranks.get(0),
            "categories": {trial.category: _winner(trial, all_trials, test, metric) for trial in shared},
        },
    }
    partial = sweep / f".{RESULT}.partial"
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(sweep / RESULT)
    return result


def _winner(trial: Trial, all_trials: Sequence[Trial], test: dict[str, dict[str, Any]], metric: str) -> dict[str, Any]:
    default = next((t for t in all_trials if t.candidate == 0 and t.category == trial.category), None)
    reached = default.last["value"] if default and default.last and default.state == FINISHED else None
    value = trial.last["value"] if trial.last else None
    return {
        "trial": trial.id,
        "parameters": trial.parameters,
        "validation": value,
        "validation_default": reached,
        "beats_default": None
        if reached is None or value is None
        else loss_of(metric, value) < loss_of(metric, reached),
        "test": test.get(trial.id, {}).get("overall", {}).get(metric),
        "test_objects": test.get(trial.id, {}).get("overall", {}).get("objects"),
    }


def print_winners(console: Console, sweep: Path, result: dict[str, Any]) -> None:
    """Print the winners' table."""
    metric, test = result["metric"], result["test_split"]
    shown = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=f"winners, by {metric} on {result['split']}")
    for name in ("for", "trial", metric, "default", f"on {test or 'test'}", "configuration"):
        shown.add_column(name, justify="right" if name not in ("for", "trial", "configuration") else "left")
    rows = [(name, row, best_file(sweep, name).name) for name, row in result["best"].items()]
    shared = result["shared"]["categories"]
    rows += [(f"shared, {name}", row, best_file(sweep, SHARED).name) for name, row in shared.items()]
    for name, row, file in rows:
        numbers = [row["validation"], row["validation_default"], row["test"]]
        shown.add_row(name, row["trial"], *(f"{n:.4g}" if n is not None else "-" for n in numbers), file)
    console.print(shown)
    for name, row, _ in rows:
        if row["beats_default"] is False:
            console.print(f"{name}: nothing beats the default configuration on {result['split']}", highlight=False)
