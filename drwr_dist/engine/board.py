"""The board between the driver and rank 0: progress in one direction, the wish to stop in the other."""

from __future__ import annotations

import threading
import time
from typing import Any

import ray


class Board:
    """A small Ray actor on the driver's node; both sides poll it, nobody waits for it."""

    def __init__(self) -> None:
        self._progress: dict[str, Any] = {}
        self._notices: list[str] = []
        self._stop = False
        self._heard = time.monotonic()

    def post(self, progress: dict[str, Any], notices: list[str]) -> bool:
        """Take the newest progress and new notices from rank 0; return whether the driver wants to stop."""
        self._heard = time.monotonic()
        self._progress = progress or self._progress
        self._notices += notices
        return self._stop

    def read(self) -> tuple[dict[str, Any], list[str], float]:
        """Return the newest progress, all notices so far, and the seconds since rank 0 last posted anything."""
        return self._progress, self._notices, time.monotonic() - self._heard

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and end."""
        self._stop = True


class Courier:
    """Rank 0's side of the board: a thread that exchanges notes twice a second, beside the training loop."""

    def __init__(self, board: Any, interval: float = 0.5):
        self.stop_requested = False
        self._board = board
        self._interval = interval
        self._progress: dict[str, Any] = {}
        self._notices: list[str] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="courier")
        self._thread.start()

    def progress(self, **values: Any) -> None:
        """Leave the newest progress for the driver."""
        self._progress = values

    def notice(self, text: str) -> None:
        """Leave one line that the driver shows above the progress bar."""
        self._notices.append(text)

    def close(self) -> None:
        """Deliver what is left and end the thread."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closed.wait(self._interval):
            self._exchange()
        self._exchange()

    def _exchange(self) -> None:
        notices, self._notices = self._notices, []
        try:
            reference = self._board.post.remote(self._progress, notices)
            self.stop_requested = bool(ray.get(reference, timeout=30)) or self.stop_requested
        except Exception:
            # The driver may be gone for good; training ends by Ray's own means then, not by a failed note.
            self._notices = notices + self._notices
