from __future__ import annotations

import io

import pytest
from rich.console import Console

from drwr_dist.engine import progress
from drwr_dist.engine.progress import TrainingProgress


def row(step: int) -> dict[str, float]:
    return {"step": step, "loss": 0.5, "unary": 0.2, "repulsion": 1.0, "samples_per_second": 64.0}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_interval_and_the_last_step_once(clock: list[float]):
    out = io.StringIO()
    shown = TrainingProgress(Console(file=out, width=200), steps=100)
    with shown:
        for step in range(1, 101):
            clock[0] += 1.0
            shown.update(row(step))
            shown.update(row(step))  # the driver polls more often than rank 0 posts
    lines = [line for line in out.getvalue().splitlines() if "/100" in line]
    assert len(lines) == 11
    assert lines[-1].startswith("100/100 ETA 0:00:00 64 samples/s loss 0.5000")


def test_the_eta_follows_the_recent_speed_and_forgets_an_outage(clock: list[float]):
    out = io.StringIO()
    shown = TrainingProgress(Console(file=out, width=200), steps=1000)
    for step in range(100):
        clock[0] += 1.0
        shown.update(row(step))
    clock[0] += 1000.0  # workers lost
    for step in range(50, 75):
        clock[0] += 2.0
        shown.update(row(step))
    last = out.getvalue().splitlines()[-1]
    left = 2 * (1000 - int(last.split("/")[0]))
    assert f"ETA 0:{left // 60}:{left % 60:02d} " in last, last


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with TrainingProgress(console, steps=10) as shown:
        shown.update(row(1))
        shown.notice("resuming")
    assert "resuming" in out.getvalue() and "━" in out.getvalue()
