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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from drwr_dist.camera import mirrored_cameras
from drwr_dist.config import DataConfig, LoaderConfig
from drwr_dist.data.decoded import Decoded
from drwr_dist.data.index import DatasetIndex, load_index, read_sample
from drwr_dist.data.plan import Plan, rank_slice
from drwr_dist.data.sample import ObjectSample, decode_sample, split_members
from drwr_dist.errors import DataError, UsageError
from drwr_dist.silhouette import smooth_of_squares, smooth_silhouette

_BYTES_PER_PIXEL = 3 + 1 + 2  # of a decoded view: colours, alpha, squared distance
_MOST_PROCESSES = 4  # that loader.workers=auto starts


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
        shard, position = self.places[sample]
        data = read_sample(self.index, shard, position)
        url = self.index.shards[shard].url
        key = self.keys[sample]
        decoded = decode_sample(split_members(data, key=key, shard=url), key=key, shard=url, **decoding)
        views, side = decoded.images.shape[:2]
        if views > self.index.views or side != self.index.image_size:
            raise DataError(
                f"{url}: {key}: {views} views of {side} pixels; {self.index.root}/index.json says at most "
                f"{self.index.views} views of {self.index.image_size}"
            )
        return decoded


@dataclass(frozen=True)
class Example:
    """One object as training sees it: an input image and the V silhouettes that judge the points."""

    key: str
    image: Tensor  # float32 [3, H, W] in [0, 1], composited on the background
    masks: Tensor  # float32 [V, H, W] in [0, 1]
    smooth: Tensor  # float32 [V, H, W], smooth silhouettes of the masks
    world_to_camera: Tensor  # float64 [V, 4, 4]
    focal_length: Tensor  # float64 [V], frame widths
    view_images: Tensor | None = None  # float32 [V, 3, H, W], what the judging views show; where they were asked for


@dataclass(frozen=True)
class Failure:
    """A sample that could not be used, and why (shard, key and reason)."""

    key: str
    reason: str
    shard: str = ""


@dataclass
class Batch:
    """A rank's part of a global batch; b may be 0 in the last step of an epoch.

    V is `data.supervision_views`. An object with fewer views repeats its last one, and view_mask is False there.
    """

    keys: list[str]
    images: Tensor  # float32 [b, 3, H, W]
    masks: Tensor  # float32 [b, V, H, W]
    smooth: Tensor  # float32 [b, V, H, W]
    world_to_camera: Tensor  # float64 [b, V, 4, 4]
    focal_length: Tensor  # float64 [b, V]
    view_mask: Tensor  # bool [b, V]
    view_images: Tensor | None = None  # float32 [b, V, 3, H, W], where they were asked for
    failures: list[Failure] = field(default_factory=list)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Move all tensors to a device, as floating-point numbers of `dtype`."""
        moved = {
            name: getattr(self, name).to(device=device, dtype=dtype, non_blocking=True)
            for name in ("images", "masks", "smooth", "world_to_camera", "focal_length")
        }
        moved["view_mask"] = self.view_mask.to(device, non_blocking=True)
        if self.view_images is not None:
            moved["view_images"] = self.view_images.to(device=device, dtype=dtype, non_blocking=True)
        return Batch(keys=self.keys, failures=self.failures, **moved)

    def select(self, rows: slice) -> Batch:
        """Return the batch of some of its objects."""
        return Batch(
            keys=self.keys[rows],
            images=self.images[rows],
            masks=self.masks[rows],
            smooth=self.smooth[rows],
            world_to_camera=self.world_to_camera[rows],
            focal_length=self.focal_length[rows],
            view_mask=self.view_mask[rows],
            view_images=None if self.view_images is None else self.view_images[rows],
        )


class SampleStream(Dataset[Example | Failure]):
    """Samples addressed by (epoch, sample number); decoded views are kept in memory up to a bound."""

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
        epoch, sample = place
        try:
            return self._example(epoch, sample)
        except DataError as error:
            shard = self.table.index.shards[self.table.places[sample][0]].url
            return Failure(self.table.keys[sample], str(error), shard)

    def views_of(self, epoch: int, sample: int, views: int) -> tuple[int, list[int]]:
        """Return (input view, supervision views) in an epoch of a sample that has so many views."""
        supervision = min(self.config.supervision_views, views)
        if self.config.view_order == "fixed":
            return 0, list(range(supervision))
        return self.plan.view_choice(sample, epoch, views, supervision)

    def _example(self, epoch: int, sample: int) -> Example:
        decoded = self._decoded(sample)
        input_view, supervision = self.views_of(epoch, sample, len(decoded.pixels))
        masks, smooth = self._silhouettes(decoded, supervision)
        pixels = as_float(torch.from_numpy(decoded.pixels[input_view]))
        cameras = torch.from_numpy(decoded.world_to_camera[supervision])
        seen = as_float(torch.from_numpy(decoded.pixels[supervision])) if self.view_images else None
        if self.config.mirror and self.plan.mirrored(sample, epoch):
            pixels, masks, smooth = pixels.flip(-1), masks.flip(-1), smooth.flip(-1)
            cameras = mirrored_cameras(cameras)
            seen = None if seen is None else seen.flip(-1)
        return Example(
            key=decoded.key,
            image=pixels,
            masks=masks,
            smooth=smooth,
            world_to_camera=cameras,
            focal_length=torch.from_numpy(decoded.focal_length[supervision]),
            view_images=seen,
        )

    def _silhouettes(self, decoded: Decoded, views: list[int]) -> tuple[Tensor, Tensor]:
        """Return masks and smooth silhouettes [V, H, W]."""
        if self.config.binarize:
            squared = np.stack([decoded.squared(view) for view in views])
            return torch.from_numpy((squared == 0).astype(np.float32)), torch.from_numpy(smooth_of_squares(squared))
        masks = torch.from_numpy(decoded.masks[views].astype(np.float32) / 255.0)
        return masks, smooth_silhouette(masks)

    def _decoded(self, sample: int) -> Decoded:
        # All views are decoded, not only the chosen ones: other epochs choose other views.
        if sample in self.cache:
            return self.cache[sample]
        decoded = Decoded.of(self.table.read(sample), self.config.background)
        if decoded.bytes <= self.cache_room:
            self.cache[sample] = decoded
            self.cache_room -= decoded.bytes
        return decoded


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Turn a uint8 [H, W, 3] image into the float32 [3, H, W] in [0, 1] that the network takes."""
    return as_float(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))


def as_float(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255.0


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


@dataclass(frozen=True)
class _Collate:
    """Stack examples into a Batch, with as many places for views; knows the shapes of an empty one."""

    image_size: int
    views: int
    view_images: bool = False

    def __call__(self, items: list[Example | Failure]) -> Batch:
        examples = [item for item in items if isinstance(item, Example)]
        side, views = self.image_size, self.views

        def stack(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            parts = [getattr(example, name) for example in examples]
            return torch.stack(parts) if parts else torch.zeros((0, *shape), dtype=dtype)

        def stack_views(name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            # The last view stands in for missing ones: a camera and a mask that nothing chokes on.
            parts = [getattr(example, name) for example in examples]
            places = torch.arange(views)
            parts = [part if len(part) == views else part[places.clamp(max=len(part) - 1)] for part in parts]
            return torch.stack(parts) if parts else torch.zeros((0, views, *shape), dtype=dtype)

        present = [torch.arange(views) < len(example.masks) for example in examples]
        return Batch(
            keys=[example.key for example in examples],
            images=stack("image", 3, side, side),
            masks=stack_views("masks", side, side),
            smooth=stack_views("smooth", side, side),
            world_to_camera=stack_views("world_to_camera", 4, 4, dtype=torch.float64),
            focal_length=stack_views("focal_length", dtype=torch.float64),
            view_mask=torch.stack(present) if present else torch.zeros((0, views), dtype=torch.bool),
            view_images=stack_views("view_images", 3, side, side) if self.view_images else None,
            failures=[item for item in items if isinstance(item, Failure)],
        )


def loader_processes(loader: LoaderConfig, table: SampleTable, cores: int | None = None) -> int:
    """Return how many processes read for one training worker.

    `auto`: none where the cache of the training process holds all objects decoded, as each process has a cache of its
    own and would decode them again; else one for each core of the worker beyond the first, at most 4.

    Args:
        loader: its key workers.
        table: the samples.
        cores: of this training worker; None: those of the machine over the workers on it.
    """
    if str(loader.workers) != "auto":
        return int(loader.workers)
    pixels = table.index.views * table.index.image_size**2
    if len(table.keys) * pixels * _BYTES_PER_PIXEL <= loader.cache_megabytes * 2**20:
        return 0
    if cores is None:
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(_MOST_PROCESSES, cores - 1))


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
) -> Iterator[Batch]:
    """Yield this rank's part of the global batches of steps `start` … `stop - 1`.

    Nothing before `start` is read or decoded. With `view_images`, what the judging views show comes too.
    """
    stream = SampleStream(table, plan, data, loader.cache_megabytes, view_images)
    processes: dict[str, Any] = {}
    workers = loader_processes(loader, table)
    if workers:
        # Not fork: Ray's and gloo's threads do not survive it.
        processes = {"multiprocessing_context": "forkserver", "prefetch_factor": loader.prefetch, "timeout": 600}
    yield from DataLoader(
        stream,
        batch_sampler=_RankSampler(plan, rank, world_size, start, stop),
        collate_fn=_Collate(table.index.image_size, data.supervision_views, view_images),
        num_workers=workers,
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
    if options.global_batch < 1 or options.start < 0 or options.steps < 0:
        raise UsageError("global_batch must be at least 1, start and steps 0 or more")
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
