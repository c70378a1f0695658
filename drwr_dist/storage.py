"""Where a run lies: a folder, or a URL (s3://…) with a folder of this machine as its working copy.

Programs read and write the folder. For a URL, what is there is the truth: it is fetched before work starts and
published when there is something new. A folder alone needs neither, and both do nothing then.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from drwr_dist.data.remote import check_writable, is_remote, join, read_remote, remote_names, remove_tree, upload
from drwr_dist.errors import DataError, UsageError

_CONNECTIONS = 8  # files sent at once


@dataclass(frozen=True)
class Storage:
    """The place of one run."""

    folder: Path  # where it is read and written
    url: str | None = None  # what the folder is a working copy of

    @classmethod
    def at(cls, address: str | os.PathLike[str]) -> Storage:
        """Return the place that a path or URL names.

        Raises:
            UsageError: a URL that can't be written, or whose package is not installed.
        """
        text = os.fspath(address).removeprefix("file://").rstrip("/")
        if not is_remote(text):
            return cls(Path(text))
        try:
            check_writable(text)
        except DataError as error:
            raise UsageError(f"storage={error}") from error
        return cls(_working_copy(text), text)

    @property
    def address(self) -> str:
        """Where others find the run: the URL, or the folder."""
        return self.url or str(self.folder)

    def fetch(self, *names: str) -> None:
        """Bring files of the URL into the folder; a file that is not there is removed here too.

        Raises:
            DataError: the URL can't be read.
        """
        for name in names if self.url else ():
            path = self.folder / name
            try:
                content = read_remote(str(self.url), name)
            except FileNotFoundError:
                path.unlink(missing_ok=True)
                continue
            except Exception as error:  # every protocol brings its own kinds of errors
                raise DataError(f"{join(str(self.url), name)}: can't be read ({error})") from error
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.partial")
            partial.write_bytes(content)
            partial.replace(path)

    def publish(self, *names: str) -> None:
        """Send files, and folders with all that is in them, to the URL; names that do not exist are left out.

        Raises:
            DataError: a file can't be written; names it.
        """
        if not self.url:
            return
        files = [file for name in names for file in _files(self.folder / name)]
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            for _ in pool.map(self._send, files):
                pass

    def _send(self, file: Path) -> None:
        below = file.parent.relative_to(self.folder).as_posix()
        upload(file, str(self.url) if below == "." else join(str(self.url), below))

    def clear(self) -> list[str]:
        """Remove everything at the URL; return the names of what was removed."""
        if not self.url:
            return []
        names = sorted(remote_names(self.url))
        remove_tree(self.url)
        return names


def _files(path: Path) -> Iterable[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.exists() else []


def _working_copy(url: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "drwr_dist", "runs", hashlib.sha256(url.encode()).hexdigest()[:16], url.rsplit("/", 1)[-1])
