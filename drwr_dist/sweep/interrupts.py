"""Ctrl-C and SIGTERM: the first asks every trial to save a checkpoint and end, the second ends at once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from drwr_dist.interrupts import on_interrupt
from drwr_dist.sweep.trial_driver import STOP


@contextlib.contextmanager
def stop_on_signals(sweep: Path, notice: Callable[[str], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM inside; the marker of an earlier interruption is removed at the start."""
    marker = sweep / STOP
    marker.unlink(missing_ok=True)

    def ask() -> bool:
        if marker.exists():
            return False
        marker.touch()
        notice("stopping: every running trial saves a checkpoint first (once more to stop without)")
        return True

    try:
        with on_interrupt(ask):
            yield
    finally:
        marker.unlink(missing_ok=True)
