"""The journal of a sweep: one folder and one `trial.json` per trial, written before it starts and after each step.

A trial is one candidate (a configuration) trained on one category. Its id, `003-chair`, is a function of both; its
folder is an ordinary run. Ray's own record of an experiment is not read: whatever dies, and whenever, the folders say
what is done, what was running and what has not begun.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from drwr_dist.errors import DataError
from drwr_dist.sweep.space import Parameters

JOURNAL = "trial.json"
TRIALS = "trials"

PENDING, RUNNING, FINISHED, STOPPED, FAILED = "pending", "running", "finished", "stopped", "failed"
STATES = (PENDING, RUNNING, FINISHED, STOPPED, FAILED)


@dataclass
class Trial:
    """What is known of a trial."""

    candidate: int  # 0 is the configuration as it is
    category: str
    parameters: Parameters
    state: str = PENDING
    reason: str = ""  # why it was stopped or failed
    history: list[dict[str, float]] = field(default_factory=list)  # {"step", "value", "seconds"} per validation
    lineage: list[dict[str, Any]] = field(default_factory=list)  # pbt, per exchange; see course.py

    @property
    def id(self) -> str:
        """Return the name of its folder."""
        return f"{self.candidate:03d}-{self.category}"

    @property
    def ended(self) -> bool:
        """Say whether nothing is left to do."""
        return self.state in (FINISHED, STOPPED, FAILED)

    def value_at(self, step: int) -> float | None:
        """Return the metric after `step` steps, if it has been measured there."""
        return next((row["value"] for row in self.history if row["step"] == step), None)

    @property
    def last(self) -> dict[str, float] | None:
        """Return the newest measurement."""
        return self.history[-1] if self.history else None


def folder(sweep: Path, trial: Trial) -> Path:
    """Return the folder of a trial, which is that of its run."""
    return sweep / TRIALS / trial.id


def save(sweep: Path, trial: Trial) -> None:
    """Write a trial's entry: afterwards either the old or the new one is on disk, whatever happens."""
    path = folder(sweep, trial) / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{JOURNAL}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(trial), indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load(sweep: Path, trial_id: str) -> Trial:
    """Read one trial's entry.

    Raises:
        DataError: it is missing or can't be understood.
    """
    path = sweep / TRIALS / trial_id / JOURNAL
    try:
        trial = Trial(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: not a trial's entry: {error}") from error
    if trial.state not in STATES or trial.id != trial_id:
        raise DataError(f"{path}: not this trial's entry (state {trial.state}, id {trial.id})")
    return trial


def load_all(sweep: Path) -> list[Trial]:
    """Read every trial that has an entry, by candidate and category; unreadable entries count as not written."""
    found = []
    for path in sorted((sweep / TRIALS).glob(f"*/{JOURNAL}")):
        try:
            found.append(load(sweep, path.parent.name))
        except DataError:
            continue  # planned again: its parameters are a function of the sweep
    return found


def plan(sweep: Path, trial: Trial) -> Trial:
    """Return the entry of a trial, written as pending where there is none; an entry that is there stands."""
    try:
        return load(sweep, trial.id)
    except DataError:
        save(sweep, trial)
        return trial
