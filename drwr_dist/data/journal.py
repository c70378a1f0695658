"""What an import has finished, so that it can be taken up again where it was interrupted.

Beside the finished shards lies `journal.jsonl`: first the fingerprint of the import (its options and its input
files), then a line per finished shard. An import with the same fingerprint goes on after them; any other starts afresh.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from drwr_dist.data.index import INDEX_NAME, Shard
from drwr_dist.errors import UsageError

JOURNAL_NAME = "journal.jsonl"
_LOCK_NAME = "lock"


@dataclass(frozen=True)
class Written:
    """What the index counts of a sample that is in a shard."""

    key: str
    split: str
    source: str
    licence: str
    views: int


class Journal:
    """The unfinished part of an import, in a folder of its own.

    Args:
        folder: of the unfinished shards; made if need be.
        fingerprint: of the import; empty: it can't be taken up again, nothing is kept.
        final: the folder to which finished shards are moved in the end; those that a killed import had moved there
            already, without an index, are taken back.

    Raises:
        UsageError: another import is at work there.
    """

    def __init__(self, folder: Path, fingerprint: str = "", final: Path | None = None) -> None:
        self.folder, self.fingerprint = folder, fingerprint
        self._made = [path for path in (folder.parent, folder) if not path.exists()]
        self.shards: list[Shard] = []
        self.samples: list[Written] = []
        self._path = folder / JOURNAL_NAME
        self._lock = _locked(folder)
        if fingerprint:
            self._take_up(final)
        self._start_over()

    @property
    def done(self) -> frozenset[str]:
        """Keys of the samples in finished shards."""
        return frozenset(sample.key for sample in self.samples)

    def record(self, shard: Shard, samples: Sequence[Written]) -> None:
        """Note that a shard is whole and synced."""
        self.shards.append(shard)
        self.samples += samples
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(shard, samples))
            file.flush()
            os.fsync(file.fileno())

    def discard(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()
        if self.folder.parent in self._made:
            with contextlib.suppress(OSError):  # it is somebody's dataset by now
                self.folder.parent.rmdir()

    def abandon(self) -> None:
        """Leave what can be taken up again, or nothing."""
        if not self.fingerprint or not self.shards:
            self.discard()
        self._lock.close()

    def _take_up(self, final: Path | None) -> None:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
            if not lines or json.loads(lines[0]).get("import") != self.fingerprint:
                return
        except (OSError, ValueError, AttributeError):
            return
        for line in lines[1:]:
            try:
                shard, samples = _parse(json.loads(line))
            except (ValueError, TypeError, KeyError):
                return  # the line that was being written
            if not self._is_whole(shard, final):
                return
            self.shards.append(shard)
            self.samples += samples

    def _is_whole(self, shard: Shard, final: Path | None) -> bool:
        path = self.folder / shard.url
        if final is not None and not path.exists() and not (final / INDEX_NAME).exists():
            with contextlib.suppress(OSError):
                (final / shard.url).replace(path)
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == shard.sha256
        except OSError:
            return False

    def _start_over(self) -> None:
        """Keep the finished shards, remove everything else, and write the journal anew."""
        kept = {shard.url for shard in self.shards} | {JOURNAL_NAME, _LOCK_NAME}
        for path in self.folder.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        by_key = {sample.key: sample for sample in self.samples}
        text = json.dumps({"import": self.fingerprint}) + "\n"
        text += "".join(_line(shard, [by_key[key] for key in shard.keys]) for shard in self.shards)
        partial = self._path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(self._path)


def _locked(folder: Path) -> BinaryIO:
    """Make a folder and lock it; the lock goes with the process, however that ends.

    Raises:
        UsageError: another process has it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK_NAME).open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise UsageError(
                f"output: another import is at work in {folder}; wait for it, or choose another"
            ) from error
        except OSError:
            return file  # a file system without locks
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(folder / _LOCK_NAME)):
                return file
        file.close()  # the import that had it has just ended, and removed its folder


def _line(shard: Shard, samples: Iterable[Written]) -> str:
    return json.dumps({"shard": asdict(shard), "samples": [asdict(sample) for sample in samples]}) + "\n"


def _parse(entry: dict[str, Any]) -> tuple[Shard, list[Written]]:
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry["shard"].items()
    }
    shard = Shard(**fields)
    if Path(shard.url).name != shard.url:
        raise ValueError(shard.url)
    samples = [Written(**sample) for sample in entry["samples"]]
    if [sample.key for sample in samples] != list(shard.keys):
        raise ValueError("samples and shard don't belong together")
    return shard, samples


def input_fingerprint(options: object, places: Iterable[str], output: str = "") -> str:
    """Return a fingerprint of an import: changes with its options and with any input file's name, size or time.

    Args:
        options: anything whose `repr` says what the import does.
        places: files and folders that it reads; what isn't there counts as not there.
        output: a folder that doesn't count, though it may lie in one of them.
    """
    digest = hashlib.sha256(repr(options).encode())
    own = Path(output).absolute() if output else None
    for place in places:
        for path in sorted(_files(Path(place))):
            if own is not None and path.absolute().is_relative_to(own):
                continue
            with contextlib.suppress(OSError):
                state = path.stat()
                digest.update(f"\0{path}\0{state.st_size}\0{state.st_mtime_ns}".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _files(place: Path) -> Iterable[Path]:
    if not place.is_dir():
        return [place]
    return (Path(folder, name) for folder, _, names in os.walk(place, followlinks=True) for name in names)
