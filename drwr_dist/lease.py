"""Who trains a run at a URL: its owner renews a small file beside it. Runs in a folder have a lock instead.

A URL knows no locks. So whoever finds the file of another owner watches it for a while: one that is renewed belongs
to a living owner, one that is not is taken over. No clocks are compared. Two who start within the same second may
both find nothing; the one that was overwritten notices at its next renewal, and ends.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from drwr_dist.data.remote import read_remote, remove_remote, upload
from drwr_dist.errors import DataError, UsageError
from drwr_dist.storage import Storage

RENEWAL = 10.0  # seconds between renewals
PATIENCE = 30.0  # seconds without one after which the owner counts as gone
LOOK = 2.0  # seconds between looks at another's file


class Lease:
    """What this process writes beside the run's URL, and whether it is still the one who may.

    Args:
        storage: of the run, which lies at a URL.
        tell: shows a line to the user.
    """

    def __init__(self, storage: Storage, tell: Callable[[str], None]):
        self.taken_by = ""  # who has taken the run over; empty: nobody
        self._root, _, name = str(storage.url).rpartition("/")
        self._file = storage.folder.parent / f".{name}.lease.json"
        self._tell = tell
        self._mine = {
            "owner": secrets.token_hex(8), "host": socket.gethostname(), "process": os.getpid(), "machine": _machine(),
        }  # fmt: skip
        self._renewals = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def acquire(self) -> None:
        """Become the owner.

        Raises:
            UsageError: somebody else trains this run.
            DataError: the URL can't be reached.
        """
        found = self._read()
        if found and not _is_gone(found):
            self._tell(f"{self._root}: {_who(found)} was at this run; {PATIENCE:.0f} s show whether it still is")
            deadline = time.monotonic() + PATIENCE
            while (seen := self._read()) and time.monotonic() < deadline:
                if seen != found:
                    raise UsageError(
                        f"{self._root}/{self._file.name}: {_who(seen)} is training this run; wait, or take another "
                        "name=…"
                    )
                time.sleep(LOOK)
        self._write()
        self._thread.start()

    def release(self) -> None:
        """Let others have the run."""
        self._closed.set()
        self._thread.join(timeout=60)
        try:
            if not self.taken_by and not self._thread.is_alive():
                remove_remote(self._root, self._file.name)
        except DataError:  # it is no longer renewed, which says the same
            pass

    def _renew(self) -> None:
        while not self._closed.wait(RENEWAL):
            try:
                found = self._read()
                if found and found.get("owner") != self._mine["owner"]:
                    self.taken_by = _who(found)
                    return
                self._write()
            except (DataError, OSError):
                continue  # of a URL that can't be reached the uploads tell

    def _read(self) -> dict[str, Any] | None:
        try:
            found = json.loads(read_remote(self._root, self._file.name))
        except (FileNotFoundError, ValueError):
            return None
        except Exception as error:  # every protocol brings its own kinds of errors
            raise DataError(f"{self._root}/{self._file.name}: can't be read ({error})") from error
        return found if isinstance(found, dict) else None

    def _write(self) -> None:
        self._renewals += 1
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._mine | {"renewals": self._renewals}))
        upload(self._file, self._root)


@contextmanager
def sole_owner(storage: Storage, tell: Callable[[str], None]) -> Iterator[Callable[[], str]]:
    """Hold the lease of a run at a URL; nothing happens for one in a folder.

    Yields:
        A function that says who has taken the run over in the meantime; an empty text: nobody.

    Raises:
        UsageError: somebody else trains this run.
        DataError: the URL can't be reached.
    """
    if not storage.url:
        yield lambda: ""
        return
    lease = Lease(storage, tell)
    lease.acquire()
    try:
        yield lambda: lease.taken_by
    finally:
        lease.release()


def _machine() -> str:
    """Name this boot of this machine, and the space in which its process numbers count; empty: unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:  # not Linux
        return ""


def _is_gone(found: dict[str, Any]) -> bool:
    """Say whether an owner is known to have ended: it was a process of this machine."""
    if not _machine() or found.get("machine") != _machine():
        return False
    return not Path("/proc", str(found.get("process"))).exists()


def _who(found: dict[str, Any]) -> str:
    return f"process {found.get('process')} on {found.get('host')}"
