"""Debian packages as sources of files: found or fetched, checked against a pinned SHA-256, taken apart in Python.

A package is an `ar` archive that holds a compressed tar. Only the files asked for are read, each bounded in size, and
they are handed over as bytes: no name in an archive ever decides where a file goes.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from drwr_dist.errors import DataError, UsageError

MAX_UNPACKED = 8 * 2**30  # bytes of all files of a package together
MAX_MEMBER = 512 * 2**20  # bytes of each file that is read
_WHERE = "shards/README.md says where to get it"


@dataclass(frozen=True)
class Package:
    """One version of a Debian package, known by the checksum of its file."""

    name: str
    version: str  # with its epoch, as apt knows it
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def locate_package(place: str, package: Package, fetch: bool) -> Path:
    """Find the file of a package, and check it.

    Args:
        place: a .deb file, or a folder of them.
        package: the one to find.
        fetch: download it into the folder with apt-get where it isn't there.

    Raises:
        UsageError: there is no such file or folder, or it can't be fetched.
        DataError: the file is another one.
    """
    path = Path(place)
    if path.is_dir() or (fetch and path.suffix != ".deb"):
        found = sorted(path.glob(f"{package.name}_*.deb"))
        matching = [file for file in found if _sha256(file) == package.sha256]
        if matching:
            return matching[0]
        if not found and fetch:
            return _fetch(path, package)
        if not found:
            raise UsageError(f"input={place}: {package.name}_*.deb is missing; {_WHERE}, or fetch=true")
        path = found[0]
    digest = _sha256(path)
    if digest != package.sha256:
        raise DataError(f"{path}: not the package {package}: sha256 is {digest}, expected {package.sha256}; {_WHERE}")
    return path


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"input={path}: {error.strerror or error}") from error


def _fetch(folder: Path, package: Package) -> Path:
    """Let apt-get download a package into a folder; needs no root."""
    if shutil.which("apt-get") is None:
        raise UsageError(f"input={folder}: {package.name} is missing, and there is no apt-get to fetch it; {_WHERE}")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", f"{package.name}={package.version}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    found = sorted(folder.glob(f"{package.name}_*.deb"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no file came"])[-1]
        raise UsageError(f"{' '.join(command)} failed: {reason}; {_WHERE}")
    return locate_package(str(found[0]), package, fetch=False)


def read_members(path: Path, names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Read regular files of a package, in the order in which they lie in it.

    Args:
        path: the .deb file.
        names: of the wanted files, without a leading `./`.

    Yields:
        (name, contents).

    Raises:
        DataError: not a package, damaged, larger than the bounds, or a file isn't in it; names it.
    """
    missing = set(names)
    try:
        with path.open("rb") as file:
            stream = _Window(file, *_data_archive(file, path))
            with tarfile.open(fileobj=stream, mode="r|*") as tar:  # type: ignore[call-overload]
                for name, data in _wanted(tar, missing, path):
                    missing.discard(name)
                    yield name, data
                    if not missing:
                        return
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if missing:
        raise DataError(f"{path}: {min(missing)} is not in the package")


def _wanted(tar: tarfile.TarFile, names: set[str], path: Path) -> Iterator[tuple[str, bytes]]:
    total = 0
    for member in tar:
        total += member.size
        if total > MAX_UNPACKED:
            raise DataError(f"{path}: unpacks to more than {MAX_UNPACKED} bytes")
        name = member.name.removeprefix("./")
        if name not in names or not member.isreg():
            continue
        if member.size > MAX_MEMBER:
            raise DataError(f"{path}: {name} unpacks to more than {MAX_MEMBER} bytes")
        file = tar.extractfile(member)
        assert file is not None  # a regular file always has contents
        yield name, file.read()


def _data_archive(file: BinaryIO, path: Path) -> tuple[int, int]:
    """Return offset and size of data.tar in an `ar` archive: 60-byte headers, contents padded to 2 bytes."""
    place = 8 if file.read(8) == b"!<arch>\n" else None
    while place is not None:
        file.seek(place)
        header = file.read(60)
        if len(header) < 60 or not header[48:58].strip().isdigit():
            break
        size = int(header[48:58])
        if header[:16].startswith(b"data.tar"):
            return place + 60, size
        place += 60 + size + size % 2
    raise DataError(f"{path}: not a Debian package: no data.tar in it")


class _Window:
    """Reads a part of a file as if it were all."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._left = file, size
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        return data
