"""SIGINT and SIGTERM while something long runs: the first asks it to end well, the second ends it."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def on_interrupt(ask: Callable[[], bool]) -> Iterator[None]:
    """Call `ask` on SIGINT and SIGTERM inside; afterwards the handlers are those of before.

    Args:
        ask: asks the work to end; returns False where it had been asked already, and KeyboardInterrupt is raised.

    Off the main thread, where Python knows no signals, nothing is changed.
    """

    def handle(signum: int, frame: object) -> None:
        if not ask():
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
