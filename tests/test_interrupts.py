"""Real signals, sent to this process."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from drwr_dist.interrupts import on_interrupt
from drwr_dist.sweep.interrupts import stop_on_signals
from drwr_dist.sweep.trial_driver import STOP


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_the_second_ends(number: signal.Signals):
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    answers, asked = iter([True, False]), []

    def ask() -> bool:
        asked.append(number)
        return next(answers)

    with pytest.raises(KeyboardInterrupt), on_interrupt(ask):
        os.kill(os.getpid(), number)
        assert asked == [number]
        os.kill(os.getpid(), number)
        pytest.fail("the second signal did not end it")
    assert {each: signal.getsignal(each) for each in before} == before


def test_other_threads_leave_the_handlers_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with on_interrupt(lambda: True):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_sweep_is_marked_as_stopping_and_unmarked_at_the_end(tmp_path: Path):
    said: list[str] = []
    with stop_on_signals(tmp_path, said.append):
        os.kill(os.getpid(), signal.SIGTERM)
        assert (tmp_path / STOP).exists() and len(said) == 1
    assert not (tmp_path / STOP).exists()
    with pytest.raises(KeyboardInterrupt), stop_on_signals(tmp_path, said.append):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert not (tmp_path / STOP).exists() and len(said) == 2
