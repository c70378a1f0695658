"""Trainings as users start them: processes of their own, waited for and watched from outside."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toy import REPOSITORY, SMALL_RUN, command, drwr, rows

from drwr_dist import checkpoint


def train(
    data: Path, storage: Path | str, *arguments: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    return drwr("train", f"data={data}", f"storage={storage}", *SMALL_RUN, *arguments, timeout=timeout, **environment)


def wait_for(
    condition: Callable[[], object], process: subprocess.Popen[str] | None = None, timeout: float = 150
) -> None:
    """Wait until a condition holds, while a process runs."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert process is None or process.poll() is None, f"ended early: {process.communicate()}"
        assert time.monotonic() < deadline, f"not in {timeout} s"
        time.sleep(0.1)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait for the checkpoint of this step, or of a later one: it may be removed before we look."""
    wait_for(lambda: any(checkpoint.step_of(name) >= step for name in checkpoint.names(run)), process)


def start(data: Path, storage: Path | str, *arguments: str) -> subprocess.Popen[str]:
    line = command("train", f"data={data}", f"storage={storage}", *SMALL_RUN, *arguments)
    return subprocess.Popen(line, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


# Nothing depends on the number of steps: a run is stopped, and an undisturbed one trained as far.
OF_ANY_LENGTH = (
    "checkpoint.every=50", "log_every=10", "precision=float64", "evaluation.split=", "optimizer.schedule=constant",
    "loss.repulsion_weight_end=null",
)  # fmt: skip


def check_against_undisturbed(data: Path, storage: Path, joins_ray: str) -> None:
    """Train as far as a run `nodes` came, without a disturbance: the curve must be the same."""
    step = int(rows(storage / "nodes")[-1]["step"])
    done = train(data, storage, "name=whole", "workers=1", f"steps={step}", *OF_ANY_LENGTH, joins_ray)
    assert done.returncode == 0, done.stderr
    one, other = rows(storage / "nodes"), rows(storage / "whole")
    assert [row["step"] for row in one] == [row["step"] for row in other]
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-8)
