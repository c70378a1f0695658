"""The index of a dataset: which shards it has, and where in them each sample lies.

`index.json` is a WebDataset `wids` index with more facts per shard, so that one sample can be read without its
neighbours and checked as it is read. A dataset is a folder or anything that fsspec can address.
"""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
import os
import socket
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

from drwr_dist.config import SPLITS
from drwr_dist.data.remote import is_remote, join, read_remote
from drwr_dist.errors import DataError, UsageError

INDEX_NAME = "index.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Shard:
    """One tar file; sample i lies in the bytes [offsets[i], offsets[i + 1]), the last one in [offsets[-1], end)."""

    url: str  # file name below the dataset's root
    nsamples: int
    filesize: int  # bytes
    sha256: str  # of the whole file
    split: str  # train | val | test
    keys: tuple[str, ...]  # sample keys in order
    offsets: tuple[int, ...]  # byte of each sample's first tar header
    crc32: tuple[int, ...]  # zlib.crc32 of each sample's bytes
    end: int  # byte at which the end-of-archive marker begins

    def byte_range(self, position: int) -> tuple[int, int]:
        """Return the first byte of a sample and the byte after its last."""
        stop = self.offsets[position + 1] if position + 1 < self.nsamples else self.end
        return self.offsets[position], stop


@dataclass(frozen=True)
class DatasetIndex:
    """All shards of a dataset and what its samples have in common."""

    root: str  # folder or URL
    name: str
    shards: tuple[Shard, ...]
    image_size: int  # pixels a side
    views: int  # views per object
    focal_length: float  # frame widths
    categories: dict[str, dict[str, int]]  # category → split → number of objects
    sources: dict[str, int] = field(default_factory=dict)  # source → number of objects
    licences: dict[str, int] = field(default_factory=dict)  # licence → number of objects
    schema_version: int = SCHEMA_VERSION

    def split(self, name: str) -> list[tuple[int, Shard]]:
        """Return the shards of a split as (shard number, shard); a split without shards gives an empty list."""
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}; there are {', '.join(SPLITS)}")
        return [(number, shard) for number, shard in enumerate(self.shards) if shard.split == name]

    def matching(self, patterns: Collection[str], splits: Collection[str] = SPLITS) -> set[int]:
        """Return the numbers of the shards of these splits whose names match one of the glob patterns.

        Raises:
            UsageError: a pattern that matches none.
        """
        candidates = [(number, shard) for split in splits for number, shard in self.split(split)]
        found: set[int] = set()
        for pattern in patterns:
            matched = {number for number, shard in candidates if fnmatch.fnmatchcase(shard.url, pattern)}
            if not matched:
                names = [shard.url for _, shard in candidates]
                listed = ", ".join(names[:4]) + (f", … ({len(names)} shards)" if len(names) > 4 else "")
                raise UsageError(f"shards={pattern}: no shard of {self.root} is called so; there are {listed}")
            found |= matched
        return found

    def select(
        self, split: str | None, categories: Collection[str] | None = None, shards: Collection[str] = ()
    ) -> list[tuple[int, int, str]]:
        """List the samples of a split as (shard number, position in the shard, key), in stored order.

        Args:
            split: train, val or test; None: of all three, in this order.
            categories: only these; None or empty: all.
            shards: only of shards whose names match one of these glob patterns; empty: all.

        Raises:
            DataError: a category that the dataset doesn't have.
            UsageError: a pattern that no shard matches.
        """
        splits = SPLITS if split is None else (split,)
        named = self.matching(shards, splits)
        wanted = set(categories or self.categories)
        if unknown := sorted(wanted - set(self.categories)):
            raise DataError(
                f"{self.root}: no category {unknown[0]!r}; the dataset has {', '.join(sorted(self.categories))}"
            )
        return [
            (number, position, key)
            for each in splits
            for number, shard in self.split(each)
            if number in named or not shards
            for position, key in enumerate(shard.keys)
            if key.split("/", 1)[0] in wanted
        ]


# --- reading the index ----------------------------------------------------------------------------------------


def load_index(root: str | os.PathLike[str]) -> DatasetIndex:
    """Read and check `index.json`.

    Args:
        root: a folder, or any URL that fsspec can read.

    Raises:
        DataError: no index there, not JSON, a field missing or of the wrong kind, or another schema version; names
            the file and the field.

    Examples:
        >>> index = load_index("shards/demo")
        >>> index.image_size, index.views, len(index.select("test", ["chair"]))
        (128, 8, 11)
    """
    root = os.fspath(root).removeprefix("file://")
    path = join(root, INDEX_NAME)
    try:
        raw = json.loads(_read_file(root, INDEX_NAME))
    except FileNotFoundError as error:
        if not is_remote(root) and not os.path.isdir(root):
            raise DataError(f"data={root}: there is no such folder on {socket.gethostname()}") from error
        raise DataError(f"no {INDEX_NAME} in {root}: not a dataset, or an import that did not finish") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}); build the dataset again or fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: can't be read ({error})") from error
    return parse_index(raw, root)


def parse_index(raw: Any, root: str) -> DatasetIndex:
    """Check the content of an index and return it typed; see `load_index`."""
    fields = _Fields(raw, join(root, INDEX_NAME))
    block = fields.child("drwr")
    version = block.get("schema_version", int)
    if version != SCHEMA_VERSION:
        raise DataError(
            f"{block.where}: schema_version is {version}, this release reads {SCHEMA_VERSION}; import the data again"
        )
    shards = tuple(
        _parse_shard(_Fields(entry, f"{fields.where}: shardlist[{number}]"))
        for number, entry in enumerate(fields.get("shardlist", list))
    )
    _check_unique(shards, fields.where)
    categories = block.counts("categories", nested=True)
    for shard in shards:
        for key in shard.keys:
            if key.split("/", 1)[0] not in categories:
                raise DataError(f"{block.where}: categories lacks that of {key} in {shard.url}; import the data again")
    return DatasetIndex(
        root=root,
        name=fields.get("name", str),
        shards=shards,
        image_size=block.get("image_size", int),
        views=block.get("views", int),
        focal_length=block.number("focal_length"),
        categories=categories,
        sources=block.counts("sources"),
        licences=block.counts("licences"),
    )


def _parse_shard(fields: _Fields) -> Shard:
    shard = Shard(
        url=fields.get("url", str),
        nsamples=fields.get("nsamples", int),
        filesize=fields.get("filesize", int),
        sha256=fields.get("sha256", str),
        split=fields.get("split", str),
        keys=tuple(fields.items("keys", str)),
        offsets=tuple(fields.items("offsets", int)),
        crc32=tuple(fields.items("crc32", int)),
        end=fields.get("end", int),
    )
    if shard.url.startswith("/") or ".." in shard.url.split("/") or "://" in shard.url:
        raise DataError(f"{fields.where}: url {shard.url!r} must lie below the dataset's folder")
    if shard.split not in SPLITS:
        raise DataError(f"{fields.where}: split {shard.split!r} is none of {', '.join(SPLITS)}")
    for name in ("keys", "offsets", "crc32"):
        if len(getattr(shard, name)) != shard.nsamples or not shard.nsamples:
            raise DataError(
                f"{fields.where}: {name} has {len(getattr(shard, name))} entries for nsamples = {shard.nsamples}"
            )
    bounds = (*shard.offsets, shard.end, shard.filesize)
    if shard.offsets[0] != 0 or any(a >= b for a, b in itertools.pairwise(bounds)):
        raise DataError(f"{fields.where}: offsets must start at 0 and grow, below end, below filesize")
    return shard


def _check_unique(shards: tuple[Shard, ...], where: str) -> None:
    seen: dict[str, str] = {}
    urls: set[str] = set()
    for shard in shards:
        if shard.url in urls:
            raise DataError(f"{where}: shard {shard.url} is listed twice")
        urls.add(shard.url)
        for key in shard.keys:
            if key.count("/") != 1:
                raise DataError(f"{where}: {shard.url}: key {key!r} is not <category>/<object id>")
            if key in seen:
                raise DataError(f"{where}: key {key!r} is both in {seen[key]} and in {shard.url}")
            seen[key] = shard.url


class _Fields:
    """A JSON object whose fields are taken out with a check; errors name the file and the field."""

    def __init__(self, raw: Any, where: str) -> None:
        if not isinstance(raw, dict):
            raise DataError(f"{where}: must be a JSON object, is {type(raw).__name__}")
        self._raw = raw
        self.where = where

    def get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        if name not in self._raw:
            raise DataError(f"{self.where}: field {name!r} is missing; import the data again")
        value = self._raw[name]
        if not isinstance(value, kind) or isinstance(value, bool):
            raise DataError(f"{self.where}: field {name!r} is {type(value).__name__}, not what it should be")
        return value

    def number(self, name: str) -> float:
        try:
            value = float(self.get(name, (int, float)))
        except OverflowError:
            value = math.inf
        if not math.isfinite(value):
            raise DataError(f"{self.where}: field {name!r} is not a finite number")
        return value

    def child(self, name: str) -> _Fields:
        return _Fields(self.get(name, dict), f"{self.where}: {name}")

    def items(self, name: str, kind: type) -> list[Any]:
        values: list[Any] = self.get(name, list)
        if not all(type(value) is kind for value in values):
            raise DataError(f"{self.where}: field {name!r} must be a list of {kind.__name__}")
        return values

    def counts(self, name: str, nested: bool = False) -> dict[str, Any]:
        table: dict[str, Any] = self.get(name, dict)
        for key in table:
            if nested:
                _Fields(table, f"{self.where}: {name}").counts(key)
            elif type(table[key]) is not int:
                raise DataError(f"{self.where}: {name}: {key!r} must be a number of objects")
        return table


# --- reading bytes --------------------------------------------------------------------------------------------


def read_sample(index: DatasetIndex, shard: int, position: int) -> bytes:
    """Read the bytes of one sample without its neighbours and check them.

    Args:
        index: the dataset.
        shard: number of the shard in `index.shards`.
        position: of the sample in the shard.

    Returns:
        The tar members of the sample, for `drwr_dist.data.sample.split_members`.

    Raises:
        DataError: the shard is missing or can't be read, is truncated, or its bytes don't match their checksum;
            names the shard and the key.
    """
    entry = index.shards[shard]
    key = entry.keys[position]
    start, stop = entry.byte_range(position)
    data = _read_range(index, entry, key, start, stop)
    if len(data) != stop - start:
        raise DataError(
            f"{entry.url}: {key}: truncated: {len(data)} of {stop - start} bytes from byte {start}; fetch it again"
        )
    if zlib.crc32(data) != entry.crc32[position]:
        raise DataError(f"{entry.url}: {key}: damaged: the bytes don't match their checksum; fetch the shard again")
    return data


def read_shard(index: DatasetIndex, shard: Shard, block: int = 4 * 2**20) -> Iterator[bytes]:
    """Yield a whole shard file in blocks of so many bytes; the last one may be shorter.

    Raises:
        DataError: the shard is missing or can't be read.
    """
    position = 0
    while True:
        data = _read_range(index, shard, "the whole file", position, position + block)
        yield data
        position += len(data)
        if len(data) < block:
            return


def _read_range(index: DatasetIndex, shard: Shard, what: str, start: int, stop: int) -> bytes:
    try:
        return _read_file(index.root, shard.url, start, stop)
    except FileNotFoundError as error:
        raise DataError(f"{shard.url}: {what}: the shard is missing from {index.root}") from error
    except OSError as error:
        raise DataError(f"{shard.url}: {what}: can't be read ({error})") from error


def _read_file(root: str, name: str, start: int = 0, stop: int | None = None) -> bytes:
    """Read bytes [start, stop) of a file below a root; fewer where the file ends before."""
    if is_remote(root):
        return read_remote(root, name, start, stop)
    file = os.open(os.path.join(root, name), os.O_RDONLY)
    try:
        size = os.fstat(file).st_size
        last = size if stop is None else min(stop, size)
        return os.pread(file, max(0, last - start), start)
    finally:
        os.close(file)
