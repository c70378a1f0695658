"""Progress of work whose amount is known, in a log: lines at intervals, with the time that is left."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from drwr_dist import counting as module
from drwr_dist.counting import LOG_INTERVAL, counted, counting


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [50.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_per_interval_and_kind_of_work(clock: list[float]) -> None:
    out = io.StringIO()
    with counting(Console(file=out, width=100)) as advance:
        for _ in range(30):
            clock[0] += 1
            advance("unpacking", 40)
        for _ in range(15):
            clock[0] += 2
            advance("rendering", 400)
    lines = out.getvalue().splitlines()
    assert lines[0] == "unpacking 11/40, 0:29 left"
    assert [line.split()[0] for line in lines] == ["unpacking", "unpacking", "rendering", "rendering"]
    assert lines[2] == "rendering 6/400, 13:08 left"


def test_short_work_says_nothing_and_items_pass_through(clock: list[float]) -> None:
    out = io.StringIO()
    items = counted(iter("abc"), "counting", 3, Console(file=out))
    assert [item for item in items if clock.append(0) is None] == list("abc")
    clock[0] += LOG_INTERVAL / 2
    assert out.getvalue() == ""


def test_a_terminal_gets_a_bar() -> None:
    out = io.StringIO()
    assert list(counted(range(3), "counting", 3, Console(file=out, force_terminal=True, width=100))) == [0, 1, 2]
    assert "3/3" in out.getvalue()
