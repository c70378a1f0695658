"""The trials in order: rows for the terminal, `leaderboard.csv` for everything else."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE
from rich.table import Table

from drwr_dist.sweep.measuring import SPLIT
from drwr_dist.sweep.selection import mean_ranks, pareto, ranking
from drwr_dist.sweep.trials import FAILED, FINISHED, PENDING, RUNNING, STOPPED, Trial

LEADERBOARD = "leaderboard.csv"
SHOWN = 5  # trials per category on the terminal, besides those that run or failed
COLOURS = {RUNNING: "cyan", FINISHED: "green", STOPPED: "yellow", FAILED: "red", PENDING: "dim"}


def write_leaderboard(sweep: Path, trials: Sequence[Trial], categories: Sequence[str], metric: str) -> Path:
    """Write every trial, best first within its category, and return the file's path."""
    keys = sorted({key for trial in trials for key in trial.parameters})
    ranks = mean_ranks(trials, categories, metric)
    text = io.StringIO()
    head = ["category", "rank", "trial", "candidate", "mean_rank", "state", "step", f"{SPLIT}_{metric}", "seconds"]
    head.append("pareto")  # of metric and seconds
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *keys, "reason"])
    for category in categories:
        placed, front = ranking(trials, category, metric), pareto(trials, category, metric)
        rest = [t for t in trials if t.category == category and t not in placed]
        for number, trial in enumerate([*placed, *rest], 1):
            last: dict[str, Any] = trial.last or {}
            rank = number if trial in placed else ""
            mean = f"{ranks[trial.candidate]:.2f}" if trial.candidate in ranks else ""
            row = [category, rank, trial.id, trial.candidate, mean, trial.state, last.get("step", "")]
            row += [f"{last['value']:.6g}", f"{last['seconds']:.1f}"] if last else ["", ""]
            row.append("yes" if trial in front else "")
            writer.writerow([*row, *(as_text(trial.parameters.get(key, "")) for key in keys), trial.reason])
    partial = sweep / f".{LEADERBOARD}.partial"
    partial.write_text(text.getvalue(), encoding="utf-8")
    partial.replace(sweep / LEADERBOARD)
    return sweep / LEADERBOARD


def as_text(value: Any) -> str:
    """Return a value as it stands in tables: floats short, null and lists as in YAML."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def table(
    trials: Sequence[Trial], categories: Sequence[str], metric: str, steps: dict[str, int], caption: str, every: bool
) -> Table:
    """Return the leaderboard for the terminal.

    Args:
        trials: all of them.
        categories: in the order to show.
        metric: that they are compared by.
        steps: of the running trials, how many they have done.
        caption: the line below.
        every: show every trial, else the best of each category and those that run or failed.
    """
    ranks = mean_ranks(trials, categories, metric)
    shown = Table(
        expand=True,
        box=SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"{SPLIT}: {metric}",
        caption=caption,
        caption_justify="left",
    )
    widths = {"#": 2, "trial": max((len(trial.id) for trial in trials), default=5), "value": 6, "shared #": 8}
    for name in ("#", "trial", "value", "shared #", "step", "state"):
        justify: Literal["left", "right"] = "left" if name in ("trial", "state") else "right"
        shown.add_column(name, justify=justify, no_wrap=True, min_width=widths.get(name, len(FINISHED)))
    shown.add_column("parameters, reason", overflow="ellipsis", no_wrap=True, ratio=1)
    for category in categories:
        placed = ranking(trials, category, metric)
        rest = [t for t in trials if t.category == category and t not in placed and t.state != PENDING]
        for number, trial in enumerate([*(placed if every else placed[:SHOWN]), *rest], 1):
            last: dict[str, Any] = trial.last or {}
            shown.add_row(
                str(number) if trial in placed else "",
                trial.id,
                f"{last['value']:.4g}" if last else "",
                f"{ranks[trial.candidate]:.1f}" if trial.candidate in ranks else "",
                str(steps.get(trial.id, last.get("step", ""))),
                f"[{COLOURS[trial.state]}]{trial.state}[/]",
                trial.reason or ("default: " if trial.candidate == 0 else "") + describe(trial),
            )
        shown.add_section()
    return shown


def describe(trial: Trial) -> str:
    """Return a trial's parameters on one line; of a key, its last word is enough."""
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {as_text(value)}" for key, value in trial.parameters.items())
