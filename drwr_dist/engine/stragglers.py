"""Ranks that let the others wait: found from the busy times that the agreement of each step brings along."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

FACTOR = 3.0  # a rank is a straggler if it is busy so many times as long as the median of the others …
SECONDS = 0.3  # … and at least this much longer per step, over an interval


@dataclass
class Stragglers:
    """Busy seconds per rank, gathered over an interval of steps."""

    names: list[str]  # rank -> how people know it: rank, host and process
    steps: int = 0
    seconds: list[float] = field(default_factory=list)
    reported: set[int] = field(default_factory=set)

    def add(self, busy: list[float]) -> None:
        """Add one step's busy seconds of every rank."""
        self.seconds = [old + new for old, new in zip(self.seconds or [0.0] * len(busy), busy, strict=True)]
        self.steps += 1

    def close_interval(self) -> tuple[float, str | None]:
        """End the interval: return the longest wait (seconds per step) and a line about a new straggler, if any."""
        if not self.steps:
            return 0.0, None
        per_step = [total / self.steps for total in self.seconds]
        self.steps, self.seconds = 0, []
        slowest = max(range(len(per_step)), key=per_step.__getitem__)
        others = [value for rank, value in enumerate(per_step) if rank != slowest]
        if not others:
            return 0.0, None
        median = statistics.median(others)
        wait = per_step[slowest] - median
        if wait < SECONDS or per_step[slowest] < FACTOR * median:
            self.reported.clear()
            return wait, None
        if slowest in self.reported:
            return wait, None
        self.reported.add(slowest)
        return wait, f"straggler: {self.names[slowest]} lets the others wait {wait:.2f} s per step"
