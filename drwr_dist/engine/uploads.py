"""Checkpoints and the history on their way to a URL, in a thread beside the training loop.

What waits is bounded by what the run's folder keeps: the newest checkpoints and the best one. Where checkpoints come
faster than the network takes them, the newest goes first and those in between are passed over; one that is under way
arrives whole, though the folder has let it go. A failed upload is reported and tried again; training ends only when the
last one has arrived.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from drwr_dist import checkpoint
from drwr_dist.errors import DataError, TrainingError
from drwr_dist.monitor import HISTORY
from drwr_dist.storage import Storage

AGAIN = 5.0  # seconds before a failed upload is tried again


class Uploads:
    """Sends what rank 0 has written to the run's URL; does nothing where the run lies in a folder.

    Args:
        storage: of the run.
        keep: how many of the newest checkpoints stay at the URL.
        metric: of the validation; the best checkpoint stays too.
        timeout: seconds that the end of training waits for an upload that keeps failing.
        tell: shows a line to the user.
    """

    def __init__(self, storage: Storage, keep: int, metric: str, timeout: float, tell: Callable[[str], None]):
        self._storage, self._keep, self._metric, self._timeout, self._tell = storage, keep, metric, timeout, tell
        self._waiting: list[str] = []  # the one under way among them
        self._sending: str | None = None  # the one under way
        self._damaged: tuple[str, ...] = ()
        self._problem: str | None = None
        self._changed = threading.Condition()
        self._closed = self._given_up = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="uploads")
        if storage.url:
            self._thread.start()

    def add(self, name: str, damaged: tuple[str, ...] = ()) -> None:
        """Ask for a checkpoint of the run's folder to be sent; `damaged` ones at the URL go when it is there."""
        if not self._storage.url:
            return
        kept = set(checkpoint.names(self._storage.folder))
        with self._changed:
            passed = [entry for entry in self._waiting if entry not in kept and entry != self._sending]
            self._waiting = [entry for entry in self._waiting if entry not in passed and entry != name] + [name]
            self._damaged = damaged
            self._changed.notify_all()
        for entry in passed:
            self._tell_passed(entry)

    def close(self) -> None:
        """Wait until everything has arrived.

        Raises:
            TrainingError: it keeps failing; says where the checkpoints are.
        """
        if not self._storage.url:
            return
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + self._timeout
        while self._thread.is_alive():
            self._thread.join(timeout=0.1)
            # A transfer that goes on may take as long as it needs; one that fails may not.
            if self._problem and time.monotonic() > deadline:
                self._given_up = True
                raise TrainingError(
                    f"{self._problem}; gave up after {self._timeout:.0f} s: the checkpoints are in "
                    f"{self._storage.folder} on this node, the same command uploads again what it computes again"
                )

    def _tell_passed(self, name: str) -> None:
        self._tell(f"{name} was not uploaded: newer checkpoints came before its turn")

    def _run(self) -> None:
        oldest = False
        while not self._given_up:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    break
                # The newest is worth most. Where several wait, every other time it is the turn of the one that has
                # waited longest: the best one would come last otherwise.
                choice = len(self._waiting) > 1
                name = self._sending = self._waiting[0 if oldest else -1]
            done = self._attempt(name)
            with self._changed:
                self._sending = None
                if done:
                    oldest = choice and not oldest
                    self._waiting = [entry for entry in self._waiting if entry != name]
            if not done:
                time.sleep(AGAIN)
        while not self._given_up and not self._attempt(None):
            time.sleep(AGAIN)

    def _attempt(self, name: str | None) -> bool:
        """Send the history, then a checkpoint: one that is at the URL has its history there too."""
        try:
            self._storage.publish(*HISTORY)
            if name:
                self._send(name)
        except DataError as error:
            if not self._problem:
                self._tell(f"upload failed, training goes on and it is tried again: {error}")
            self._problem = str(error)
            return False
        if self._problem:
            self._tell("uploads work again")
        self._problem = None
        return True

    def _send(self, name: str) -> None:
        url = str(self._storage.url)
        try:
            checkpoint.send(self._storage.folder, name, url)
        except FileNotFoundError:  # the folder let it go before its turn: a newer one waits, or is about to
            self._tell_passed(name)
            return
        checkpoint.prune(url, self._keep, self._metric, self._damaged)
