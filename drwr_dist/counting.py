"""How far work has come whose amount is known: a bar where there is a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Advance = Callable[[str, int], None]  # what was done once more, and how many times it will be done
Item = TypeVar("Item")

LOG_INTERVAL = 10.0  # seconds between lines where the output is not a terminal


@contextmanager
def counting(console: Console, transient: bool = False) -> Iterator[Advance]:
    """Give a function that counts: `advance("rendering", 367)` says that one of 367 is done.

    Args:
        console: where it is shown.
        transient: whether a bar disappears at the end.
    """
    if not console.is_terminal:
        yield _Lines(console).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[str, TaskID] = {}
    bar = Progress(*columns, console=console, transient=transient)

    def advance(what: str, total: int) -> None:
        if not tasks:
            bar.start()
        if what not in tasks:
            tasks[what] = bar.add_task(what, total=total)
        bar.advance(tasks[what])

    try:
        yield advance
    finally:
        if tasks:
            bar.stop()


def counted(items: Iterable[Item], what: str, total: int, console: Console) -> Iterator[Item]:
    """Yield the items; each counts when the next one is asked for. A bar disappears at the end."""
    with counting(console, transient=True) as advance:
        for item in items:
            yield item
            advance(what, total)


class _Lines:
    """One line per interval and kind of work, with the time that is left at the mean speed so far."""

    def __init__(self, console: Console):
        self.console = console
        self._began: dict[str, float] = {}
        self._done: dict[str, int] = {}
        self._next: dict[str, float] = {}  # when the next line of a kind is due

    def advance(self, what: str, total: int) -> None:
        now = time.monotonic()
        if what not in self._began:
            self._began[what], self._next[what], self._done[what] = now, now + LOG_INTERVAL, 0
        self._done[what] += 1
        done = self._done[what]
        if now < self._next[what]:
            return
        # The first one only starts the clock: how long it took is not known.
        left = (now - self._began[what]) * (total - done) / max(1, done - 1)
        minutes, seconds = divmod(round(left), 60)
        self.console.print(f"{what} {done}/{total}, {minutes}:{seconds:02d} left", highlight=False)
        self._next[what] = now + LOG_INTERVAL
