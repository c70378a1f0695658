"""Ctrl-C and SIGTERM: the first asks every trial to save a checkpoint and end, the second ends at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

from drwr_dist.sweep.trial_driver import STOP


@contextlib.contextmanager
def stop_on_signals(sweep: Path, notice: Callable[[str], None]) -> Iterator[None]:
    """Handle SIGINT and SIGTERM inside; the marker of an earlier interruption is removed at the start."""
    (sweep / STOP).unlink(missing_ok=True)

    def handle(signum: int, frame: object) -> None:
        if (sweep / STOP).exists():
            raise KeyboardInterrupt
        (sweep / STOP).touch()
        notice("stopping: every running trial saves a checkpoint first (once more to stop without)")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        (sweep / STOP).unlink(missing_ok=True)
