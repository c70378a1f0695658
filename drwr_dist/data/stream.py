"""Execute the plan: read, check and decode exactly the samples that a rank needs, in the plan's order.

`index -> SampleTable -> Plan -> SampleStream (a torch dataset) -> DataLoader -> Batch`. PyTorch's loader hands
batches over in the sampler's order whatever the number of loader processes, so the order is the plan's alone.
A sample that can't be used never raises in a loader process: it travels as a `Failure` to the training loop,
which decides with all other ranks what happens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from drwr_dist.config import SPLITS, DataConfig, LoaderConfig
from drwr_dist.data.batch import Batch, BatchRows, Example, Failure
from drwr_dist.data.decoded import Decoded, bytes_of_view
from drwr_dist.data.index import DatasetIndex, load_index, read_sample
from drwr_dist.data.plan import Plan, rank_slice
from drwr_dist.data.recolour import Recolouring
from drwr_dist.data.sample import ObjectSample, decode_sample, split_members
from drwr_dist.errors import DataError, UsageError

_MOST_PROCESSES, _MOST_BESIDE_GPU = 4, 8  # that loader.workers=auto starts


@dataclass(frozen=True)
class SampleTable:
    """The samples of one split (and category selection), numbered 0 … n-1 in the order of the index."""

    index: DatasetIndex
    places: tuple[tuple[int, int], ...]  # sample number -> (shard number, position in the shard)
    keys: tuple[str, ...]
    shard_sizes: tuple[int, ...]

    @classmethod
    def select(
        cls, index: DatasetIndex, split: str | None, categories: Sequence[str] = (), shards: Sequence[str] = ()
    ) -> SampleTable:
        """Choose the samples of `split` (None: of any), of `categories` and `shards` (patterns), where any are given.

        Raises:
            UsageError: a category that the dataset doesn't have, a pattern that no shard of the split matches.
            DataError: no sample is left.
        """
        unknown = sorted(set(categories) - set(index.categories))
        if unknown:
            known = ", ".join(sorted(index.categories))
            raise UsageError(f"data.categories: {index.root} has no category {unknown[0]}; it has {known}")
        rows = index.select(split, categories or None, shards)
        if not rows:
            raise DataError(f"{index.root}: split {split!r} has no samples")
        sizes: dict[int, int] = {}
        for shard, _, _ in rows:
            sizes[shard] = sizes.get(shard, 0) + 1
        return cls(
            index=index,
            places=tuple((shard, position) for shard, position, _ in rows),
            keys=tuple(key for _, _, key in rows),
            shard_sizes=tuple(sizes.values()),
        )

    def plan(self, seed: int, global_batch: int) -> Plan:
        """Return the order in which these samples are visited."""
        return Plan(self.shard_sizes, seed, global_batch)

    def read(self, sample: int, **decoding: Any) -> ObjectSample:
        """Read and decode one sample; `decoding` goes to `decode_sample`. Raises DataError naming shard and key."""
        members, url = self._members(sample)
        decoded = decode_sample(members, key=self.keys[sample], shard=url, **decoding)
        self._check_shape(sample, *decoded.images.shape[:2])
        return decoded

    def open(self, sample: int, config: DataConfig) -> Decoded:
        """Read one sample, whose views are decoded when they are asked for. Raises DataError naming shard and key."""
        members, url = self._members(sample)
        decoded = Decoded.of(
            members,
            key=self.keys[sample],
            shard=url,
            side=self.index.image_size,
            background=config.background,
            binary=config.binarize,
            despeckle=config.despeckle,
        )
        self._check_shape(sample, decoded.views, decoded.side)
        return decoded

    def _members(self, sample: int) -> tuple[dict[str, bytes], str]:
        """Return the members of a sample and the shard that they are from."""
        shard, position = self.places[sample]
        url = self.index.shards[shard].url
        return split_members(read_sample(self.index, shard, position), key=self.keys[sample], shard=url), url

    def _check_shape(self, sample: int, views: int, side: int) -> None:
        if views > self.index.views or side != self.index.image_size:
            url = self.index.shards[self.places[sample][0]].url
            raise DataError(
                f"{url}: {self.keys[sample]}: {views} views of {side} pixels; {self.index.root}/index.json says at "
                f"most {self.index.views} views of {self.index.image_size}"
            )


class SampleStream(Dataset[Example | Failure]):
    """Samples addressed by (epoch, sample number); what was decoded is kept in memory up to a bound."""

    def __init__(
        self, table: SampleTable, plan: Plan, config: DataConfig, cache_megabytes: int = 0, view_images: bool = False
    ):
        self.table = table
        self.view_images = view_images
        self.plan = plan
        self.config = config
        self.cache: dict[int, Decoded] = {}
        self.cache_room = cache_megabytes * 2**20

    def __getitem__(self, place: tuple[int, int]) -> Example | Failure:
        batch = self.__getitems__([place])
        return batch.failures[0] if batch.failures else batch.example(0)

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Return the batch of these samples: what PyTorch's loader asks for."""
        rows = BatchRows(len(places), self.config.supervision_views, self.table.index.image_size, self.view_images)
        for epoch, sample in places:
            try:
                decoded = self._decoded(sample)
                input_view, supervision = self.views_of(epoch, sample, decoded.views)
                mirror = self.config.mirror and self.plan.mirrored(sample, epoch)
                rows.add(decoded, input_view, supervision, mirror, self._recolouring(sample, epoch))
            except DataError as error:
                shard = self.table.index.shards[self.table.places[sample][0]].url
                rows.failures.append(Failure(self.table.keys[sample], str(error), shard))
        return rows.batch()

    def _recolouring(self, sample: int, epoch: int) -> Recolouring | None:
        return Recolouring.draw(self.plan.recolouring(sample, epoch)) if self.config.recolour else None

    def views_of(self, epoch: int, sample: int, views: int) -> tuple[int, list[int]]:
        """Return (input view, supervision views) in an epoch of a sample that has so many views."""
        supervision = min(self.config.supervision_views, views)
        if self.config.view_order == "fixed":
            return 0, list(range(supervision))
        return self.plan.view_choice(sample, epoch, views, supervision)

    def _decoded(self, sample: int) -> Decoded:
        if sample in self.cache:
            return self.cache[sample]
        decoded = self.table.open(sample, self.config)
        if (needed := decoded.bytes) <= self.cache_room:
            self.cache[sample] = decoded
            self.cache_room -= needed
        return decoded


class _RankSampler(Sampler[list[tuple[int, int]]]):
    """For each step, the (epoch, sample number) pairs of one rank; possibly none."""

    def __init__(self, plan: Plan, rank: int, world_size: int, start: int, stop: int):
        self.plan, self.rank, self.world_size, self.start, self.stop = plan, rank, world_size, start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, batches = -1, []
        for step in range(self.start, self.stop):
            if self.plan.epoch_of(step) != epoch:
                epoch = self.plan.epoch_of(step)
                batches = self.plan.epoch_batches(epoch)
            batch = batches[step % self.plan.steps_per_epoch]
            yield [(epoch, int(sample)) for sample in rank_slice(batch, self.rank, self.world_size)]


def _as_it_is(batch: Batch) -> Batch:
    return batch


def loader_processes(loader: LoaderConfig, table: SampleTable, cores: int | None = None, gpu: bool = False) -> int:
    """Return how many processes read for one training worker.

    `auto`: none where the cache of the training process holds all objects decoded, as each process has a cache of its
    own and would decode them again; else one for each core of the worker beyond the first, at most 4. Beside a GPU,
    which would wait while its own process prepares a batch: one for each such core in any case, at most 8.

    Args:
        loader: its key workers.
        table: the samples.
        cores: of this training worker; None: those of the machine over the workers on it.
        gpu: whether the worker has a GPU.
    """
    if str(loader.workers) != "auto":
        return int(loader.workers)
    needed = len(table.keys) * table.index.views * bytes_of_view(table.index.image_size)
    if needed <= loader.cache_megabytes * 2**20 and not gpu:
        return 0
    if cores is None:
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(_MOST_BESIDE_GPU if gpu else _MOST_PROCESSES, cores - 1))


def batches(
    table: SampleTable,
    plan: Plan,
    data: DataConfig,
    loader: LoaderConfig,
    *,
    rank: int,
    world_size: int,
    start: int,
    stop: int,
    view_images: bool = False,
    gpu: bool = False,
) -> Iterator[Batch]:
    """Yield this rank's part of the global batches of steps `start` … `stop - 1`.

    Nothing before `start` is read or decoded. With `view_images`, what the judging views show comes too. With
    `gpu`, batches lie in memory from which they travel to a GPU while it works.
    """
    stream = SampleStream(table, plan, data, loader.cache_megabytes, view_images)
    processes: dict[str, Any] = {}
    workers = loader_processes(loader, table, gpu=gpu)
    if workers:
        # Not fork: Ray's and gloo's threads do not survive it.
        processes = {"multiprocessing_context": "forkserver", "prefetch_factor": loader.prefetch, "timeout": 600}
    yield from DataLoader(
        stream,
        batch_sampler=_RankSampler(plan, rank, world_size, start, stop),
        collate_fn=_as_it_is,  # type: ignore[arg-type]  # the stream makes whole batches
        num_workers=workers,
        pin_memory=gpu,
        **processes,
    )


@dataclass
class StreamOptions:
    """Read the stream of one rank and print a JSON line per step: {"step": …, "keys": […]}."""

    data: DataConfig = field(default_factory=DataConfig)
    split: str = "train"  # split to read
    seed: int = 0  # of the order of the samples and the views
    global_batch: int = 8  # objects per step, over all workers
    world_size: int = 1  # number of workers that share the global batches
    rank: int = 0  # which of them this is
    start: int = 0  # first step
    steps: int = 20  # number of steps
    loader: LoaderConfig = field(default_factory=LoaderConfig)


def print_stream(options: StreamOptions) -> None:
    """Run the verb `shards stream`.

    Raises:
        UsageError: rank outside the world, or numbers that can't be.
        DataError: a damaged sample, where data.on_bad_sample is `fail`.
    """
    if not 0 <= options.rank < options.world_size:
        raise UsageError(f"rank={options.rank}: must be in 0 … world_size - 1 = {options.world_size - 1}")
    if options.start < 0 or options.steps < 0:
        raise UsageError("start and steps must be 0 or more")
    if options.split not in SPLITS:
        raise UsageError(f"split={options.split}: choose one of {', '.join(SPLITS)}")
    index = load_index(options.data.path)
    options.data.supervision_views = min(options.data.supervision_views, index.views)  # only keys are shown
    table = SampleTable.select(index, options.split, options.data.categories)
    steps = batches(
        table,
        table.plan(options.seed, options.global_batch),
        options.data,
        options.loader,
        rank=options.rank,
        world_size=options.world_size,
        start=options.start,
        stop=options.start + options.steps,
    )
    for step, batch in enumerate(steps, options.start):
        if batch.failures and options.data.on_bad_sample == "fail":
            raise DataError(batch.failures[0].reason)
        skipped = {"skipped": [failure.key for failure in batch.failures]} if batch.failures else {}
        print(json.dumps({"step": step, "keys": batch.keys, **skipped}), flush=True)


def check_views(data: DataConfig, index: DatasetIndex) -> None:
    """Raise UsageError where more supervision views are asked for than the dataset has."""
    if data.supervision_views > index.views:
        raise UsageError(
            f"data.supervision_views={data.supervision_views}: {index.root} has {index.views} views per object "
            f"at most; ask for at most {index.views}"
        )
