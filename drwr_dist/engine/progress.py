"""The progress of training on the terminal: a bar where there is a terminal, a line every few seconds in a log."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from drwr_dist.config import LOSS_TERMS

SHOWN = (*LOSS_TERMS, "student")
WINDOW = 60.0  # seconds over which the speed is taken for the ETA
LOG_INTERVAL = 10.0  # seconds between lines where the output is not a terminal


class TrainingProgress:
    """Shows step, losses, samples per second and the time that is left."""

    def __init__(self, console: Console, steps: int):
        self.console = console
        self._steps = steps
        self._bar: Progress | None = None
        self._recent: deque[tuple[int, float]] = deque()  # (step, time) of the last minute, for the ETA
        self._logged, self._shown = 0.0, 0  # time and step of the last line
        if console.is_terminal:
            self._bar = Progress(BarColumn(bar_width=12), TextColumn("{task.description}"), console=console)
            self._task = self._bar.add_task("starting workers …", total=steps)

    def __enter__(self) -> TrainingProgress:
        if self._bar:
            self._bar.start()
        else:
            self.console.print("starting workers …")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def notice(self, text: str) -> None:
        """Print one line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def update(self, values: dict[str, Any]) -> None:
        """Show the newest progress that rank 0 has posted (a row of metrics.jsonl, with its step)."""
        now, step = time.monotonic(), int(values["step"])
        self._remember(step, now)
        text = self._text(values, step, now)
        if self._bar:
            self._bar.update(self._task, completed=step, description=text)
        elif step != self._shown and (now - self._logged >= LOG_INTERVAL or step == self._steps):
            self.console.print(text, highlight=False, soft_wrap=True)
            self._logged, self._shown = now, step

    def _text(self, values: dict[str, Any], step: int, now: float) -> str:
        terms = " ".join(f"{name} {values[name]:.3f}" for name in SHOWN if name in values)
        speed = f"{values['samples_per_second']:.0f} samples/s"
        # The losses come last: a narrow terminal cuts the end off.
        return f"{step}/{self._steps} {self._left(step, now)} {speed} loss {values['loss']:.4f} {terms}"

    def _remember(self, step: int, now: float) -> None:
        if self._recent and step < self._recent[-1][0]:
            self._recent.clear()  # workers were replaced and resumed from a checkpoint
        if not self._recent or step > self._recent[-1][0]:
            self._recent.append((step, now))
        while now - self._recent[0][1] > WINDOW and len(self._recent) > 2:
            self._recent.popleft()

    def _left(self, step: int, now: float) -> str:
        done, elapsed = step - self._recent[0][0], now - self._recent[0][1]
        if not done:
            return "ETA …"
        seconds = round(elapsed / done * (self._steps - step))
        return f"ETA {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
