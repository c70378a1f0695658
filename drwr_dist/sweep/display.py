"""What the terminal shows while a sweep runs: the leaderboard and the time left; in a log, a line per event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live

from drwr_dist.monitor import METRICS, read_rows
from drwr_dist.sweep import trials as journal
from drwr_dist.sweep.leaderboard import describe, table
from drwr_dist.sweep.trials import FINISHED, PENDING, RUNNING, Trial


class Display:
    """Shows the trials as the journal has them."""

    def __init__(self, console: Console, sweep: Path, categories: Sequence[str], metric: str, steps: int, total: int):
        self.console = console
        self._sweep, self._categories, self._metric = sweep, categories, metric
        self._steps, self._total = steps, total  # of a trial; number of trials in the whole sweep
        self._seen: dict[str, tuple[str, int]] = {}  # trial -> (state, measurements) that have been told
        self._begin = time.monotonic()
        self._done_before: float | None = None  # steps that lay on disk at the start
        self._live = Live(console=console, refresh_per_second=2, transient=True) if console.is_terminal else None

    def __enter__(self) -> Display:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def notice(self, text: str) -> None:
        """Print a line that stays."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def refresh(self, trials: Sequence[Trial]) -> bool:
        """Bring the display up to date; return whether a trial has changed since the last time."""
        steps = {trial.id: self._step(trial) for trial in trials if trial.state == RUNNING}
        now = {trial.id: (trial.state, len(trial.history)) for trial in trials}
        first, changed = not self._seen, [t for t in trials if self._seen.get(t.id, (PENDING, 0)) != now[t.id]]
        self._seen = now
        left = self._left(trials, steps)
        if self._live:
            self._live.update(table(trials, self._categories, self._metric, steps, left, every=False))
        elif not first:
            for trial in changed:
                self._tell(trial, left)
        return bool(changed)

    def _tell(self, trial: Trial, left: str) -> None:
        line = f"{trial.id} {trial.state}"
        if trial.last:
            line += f": {self._metric} {trial.last['value']:.4g} after {trial.last['step']:.0f} steps"
        if trial.state == RUNNING and not trial.last:
            line += f": {describe(trial)}"
        self.notice(line + (f" ({trial.reason})" if trial.reason else "") + f"   [{left}]")

    def _step(self, trial: Trial) -> int:
        rows = read_rows(journal.folder(self._sweep, trial) / METRICS)
        return int(rows[-1]["step"]) if rows else 0

    def _left(self, trials: Sequence[Trial], steps: dict[str, int]) -> str:
        """Estimate the time left from the steps done since the start; ending trials early only makes it less."""
        ended = sum(trial.ended for trial in trials)
        done = float(sum(steps.get(t.id, (t.last or {"step": 0})["step"]) for t in trials))
        if self._done_before is None:
            self._done_before = done
        open_steps = sum(self._steps - steps.get(t.id, 0) for t in trials if not t.ended)
        open_steps += self._steps * max(0, self._total - len(trials))
        text = f"{ended} of {self._total} trials ended"
        gained, elapsed = done - self._done_before, time.monotonic() - self._begin
        if not open_steps:
            return text
        if gained <= 0 or not any(trial.state == FINISHED for trial in trials):
            return f"{text}, time left: after the first trial"
        seconds = round(open_steps * elapsed / gained)
        return f"{text}, at most {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"
