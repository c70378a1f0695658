"""Writing shards: plain tars that are the same bytes whenever the same samples arrive in the same order.

Shards are written beside their place and moved (or sent) there when all of them are whole and synced; `index.json`
comes last. An interrupted import leaves the dataset that was there before, or none; never one that only looks
complete. Its finished shards stay beside, for the next try of the same import.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from drwr_dist.config import SPLITS
from drwr_dist.data.index import INDEX_NAME, SCHEMA_VERSION, DatasetIndex, Shard
from drwr_dist.data.journal import Journal, Written
from drwr_dist.data.remote import check_writable, is_remote, remote_names, remove_remote, upload
from drwr_dist.durable import flush
from drwr_dist.errors import DataError, UsageError

_PARTIAL = ".partial"  # folder in the output that holds unfinished shards
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{6,}}\.tar")
_USER, _MODE, _MTIME = "drwr", 0o644, 0  # the same in every tar header


@dataclass(frozen=True)
class EncodedSample:
    """One object ready to be written."""

    key: str  # <category>/<object id>
    split: str  # train | val | test
    members: Mapping[str, bytes]  # as `encode_sample` gives them
    source: str  # counted in the index
    licence: str  # counted in the index


@dataclass(frozen=True)
class ShardLimits:
    """When a shard is full."""

    samples: int = 1000  # at most so many objects
    size: int = 256 * 2**20  # at most so many bytes, unless a single object is larger


def open_journal(output: str | os.PathLike[str], fingerprint: str, overwrite: bool = False) -> Journal:
    """Prepare an output for an import: see whether it may be written, and what an earlier try has left of it.

    Args:
        output: a local folder, or a URL that fsspec can write.
        fingerprint: of the import (see `drwr_dist.data.journal.input_fingerprint`).
        overwrite: replace a dataset that is there already.

    Raises:
        UsageError: a dataset is there already and `overwrite` is false.
        DataError: the URL can't be written.
    """
    place = os.fspath(output).removeprefix("file://")
    if is_remote(place):
        check_writable(place)
        taken = INDEX_NAME in remote_names(place)
    else:
        taken = Path(place, INDEX_NAME).exists()
    if taken and not overwrite:
        raise UsageError(f"{place} already holds a dataset; choose another output or add overwrite=true")
    if is_remote(place):
        return Journal(_staging(place), fingerprint)
    return Journal(Path(place, _PARTIAL), fingerprint, final=Path(place))


def _staging(url: str) -> Path:
    """Return the local folder in which a dataset is built before it is sent to a URL."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "drwr_dist", "imports", hashlib.sha256(url.encode()).hexdigest()[:16])


def write_dataset(
    output: str | os.PathLike[str],
    samples: Iterable[EncodedSample],
    *,
    name: str,
    image_size: int,
    views: int | None = None,
    focal_length: float,
    limits: ShardLimits | None = None,
    overwrite: bool = False,
    journal: Journal | None = None,
) -> DatasetIndex:
    """Write samples as shards and then their index.

    Args:
        output: a local folder, made if need be, or a URL that fsspec can write (s3://, gs://, memory://, …); for a
            URL the shards are built locally and sent when all are there.
        samples: all of one split before the next; their order is the order on disk. Without those that the journal
            has already.
        name: of the dataset.
        image_size: pixels a side.
        views: per object; None: as many as the samples have.
        focal_length: frame widths.
        limits: when a shard is full.
        overwrite: replace a dataset that is there already.
        journal: what an interrupted import has finished (see `open_journal`); None: start afresh.

    Raises:
        UsageError: a dataset is there already and `overwrite` is false.
        DataError: no sample, a key twice, or the URL can't be written.
    """
    journal = open_journal(output, "", overwrite) if journal is None else journal
    root = os.fspath(output).removeprefix("file://")
    try:
        totals = _write_shards(journal, samples, limits or ShardLimits())
        if not journal.shards:
            raise DataError(f"nothing to write to {root}: no object was imported")
        index = DatasetIndex(
            root=root,
            name=name,
            shards=tuple(journal.shards),
            image_size=image_size,
            views=totals.views if views is None else views,
            focal_length=focal_length,
            categories=totals.categories(),
            sources=dict(sorted(totals.sources.items())),
            licences=dict(sorted(totals.licences.items())),
        )
        _publish(journal, index)
    except BaseException:
        journal.abandon()
        raise
    journal.discard()
    return index


def _publish(journal: Journal, index: DatasetIndex) -> None:
    """Put finished shards and then their index in their place."""
    text = index_json(index).encode("utf-8")
    if not is_remote(index.root):
        _move_into_place(journal.folder, Path(index.root), journal.shards)
        write_atomically(Path(index.root, INDEX_NAME), text)
        return
    remove_remote(index.root, INDEX_NAME)
    names = {shard.url for shard in journal.shards}
    for old in remote_names(index.root):
        if _SHARD.fullmatch(old) and old not in names:
            remove_remote(index.root, old)
    for shard in journal.shards:
        upload(journal.folder / shard.url, index.root)
    write_atomically(journal.folder / INDEX_NAME, text)
    upload(journal.folder / INDEX_NAME, index.root)


def index_json(index: DatasetIndex) -> str:
    """Return the text of `index.json`, one shard a line."""
    entries = ",\n  ".join(json.dumps(asdict(shard)) for shard in index.shards)
    block = {
        "schema_version": SCHEMA_VERSION,
        "image_size": index.image_size,
        "views": index.views,
        "focal_length": index.focal_length,
        "categories": index.categories,
        "sources": index.sources,
        "licences": index.licences,
    }
    return (
        f'{{"wids_version": 1,\n"name": {json.dumps(index.name)},\n"shardlist": [\n  {entries}\n],\n'
        f'"drwr": {json.dumps(block, indent=1)}}}\n'
    )


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all, and stays after a power failure."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            _sync(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    flush(path.parent)


def _move_into_place(partial: Path, folder: Path, shards: list[Shard]) -> None:
    """Replace the shards of an earlier dataset in the folder, which ceases to be one until the new index is there."""
    (folder / INDEX_NAME).unlink(missing_ok=True)
    for path in folder.iterdir():
        if _SHARD.fullmatch(path.name):
            path.unlink()
    for shard in shards:
        (partial / shard.url).replace(folder / shard.url)
    flush(folder)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


class _Totals:
    """What the index counts over all samples."""

    def __init__(self) -> None:
        self.keys: set[str] = set()
        self.views = 0  # of the object that has most
        self.objects: Counter[tuple[str, str]] = Counter()
        self.sources: Counter[str] = Counter()
        self.licences: Counter[str] = Counter()

    def add(self, sample: Written) -> None:
        if sample.key in self.keys:
            raise DataError(f"two objects have the key {sample.key!r}; rename one of them")
        self.keys.add(sample.key)
        self.views = max(self.views, sample.views)
        self.objects[sample.key.split("/", 1)[0], sample.split] += 1
        self.sources[sample.source] += 1
        self.licences[sample.licence] += 1

    def categories(self) -> dict[str, dict[str, int]]:
        names = sorted({category for category, _ in self.objects})
        return {name: {split: self.objects[name, split] for split in SPLITS} for name in names}


def _write_shards(journal: Journal, samples: Iterable[EncodedSample], limits: ShardLimits) -> _Totals:
    """Write samples after the shards that the journal has."""
    totals = _Totals()
    for written in journal.samples:
        totals.add(written)
    numbers = Counter(shard.split for shard in journal.shards)
    writer: _ShardWriter | None = None
    try:
        for sample in samples:
            totals.add(_written(sample))
            if writer is not None and not writer.takes(sample, limits):
                journal.record(writer.close(), writer.samples)
                writer = None
            if writer is None:
                name = f"{sample.split}-{numbers[sample.split]:06d}.tar"
                writer = _ShardWriter(journal.folder / name, sample.split)
                numbers[sample.split] += 1
            writer.add(sample)
        if writer is not None:
            journal.record(writer.close(), writer.samples)
            writer = None
    finally:
        if writer is not None:
            writer.abandon()
    return totals


def _written(sample: EncodedSample) -> Written:
    views = sum(name.endswith(".mask.png") for name in sample.members)
    return Written(sample.key, sample.split, sample.source, sample.licence, views)


class _ShardWriter:
    """One shard in the making."""

    def __init__(self, path: Path, split: str) -> None:
        import webdataset  # brings torch, which the processes that render don't need

        self._path, self._split = path, split
        self._file = path.open("wb")
        self._stream = _HashingStream(self._file)
        self._tar = webdataset.TarWriter(self._stream, encoder=False, user=_USER, group=_USER, mode=_MODE, mtime=_MTIME)
        self.samples: list[Written] = []
        self._offsets: list[int] = []

    @property
    def _position(self) -> int:
        return int(self._tar.tarstream.offset)

    def takes(self, sample: EncodedSample, limits: ShardLimits) -> bool:
        if sample.split != self._split or len(self.samples) >= limits.samples:
            return False
        return self._position + _tar_size(sample.members) <= limits.size

    def add(self, sample: EncodedSample) -> None:
        self.samples.append(_written(sample))
        self._offsets.append(self._position)
        self._tar.write({"__key__": sample.key, **sample.members})

    def close(self) -> Shard:
        end = self._position
        self._tar.close()
        _sync(self._file)
        self._file.close()
        bounds = [*self._offsets, end]
        return Shard(
            url=self._path.name,
            nsamples=len(self.samples),
            filesize=self._stream.size,
            sha256=self._stream.sha256.hexdigest(),
            split=self._split,
            keys=tuple(sample.key for sample in self.samples),
            offsets=tuple(self._offsets),
            crc32=_checksums(self._path, bounds),
            end=end,
        )

    def abandon(self) -> None:
        self._tar.close()
        self._file.close()


def _tar_size(members: Mapping[str, bytes]) -> int:
    return sum(512 + -(-len(data) // 512) * 512 for data in members.values())


def _checksums(path: Path, bounds: list[int]) -> tuple[int, ...]:
    with path.open("rb") as file:
        return tuple(zlib.crc32(file.read(b - a)) for a, b in itertools.pairwise(bounds))


class _HashingStream:
    """Passes bytes on and hashes them on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.size += len(data)
        return self._file.write(data)
