from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_tools import encoded, make_sample, write_samples
from toy import call, drwr

from drwr_dist.camera import mirrored_cameras
from drwr_dist.config import DataConfig, LoaderConfig
from drwr_dist.data.batch import Batch, Example
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleStream, SampleTable, batches, check_views, loader_processes
from drwr_dist.errors import DataError, UsageError


def stream(
    data: Path, *, rank: int = 0, world_size: int = 1, start: int = 0, stop: int, batch: int = 5, **settings: object
) -> list[Batch]:
    workers = settings.pop("workers", 0)
    config = DataConfig(path=str(data), supervision_views=3, **settings)  # type: ignore[arg-type]
    table = SampleTable.select(load_index(str(data)), "train")
    plan = table.plan(0, batch)
    loader = LoaderConfig(workers=workers)  # type: ignore[arg-type]
    parts = batches(table, plan, config, loader, rank=rank, world_size=world_size, start=start, stop=stop)
    return list(parts)


def steps_of_an_epoch(data: Path, batch: int = 5) -> int:
    return SampleTable.select(load_index(str(data)), "train").plan(0, batch).steps_per_epoch


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_world_size_only_slices_the_global_batches(toy_dataset: Path, world_size: int):
    """Keys, views and mirroring: what a sample looks like in an epoch depends on no rank either."""
    steps = 2 * steps_of_an_epoch(toy_dataset)
    alone = stream(toy_dataset, stop=steps, mirror=True)
    parts = [
        stream(toy_dataset, rank=rank, world_size=world_size, stop=steps, mirror=True) for rank in range(world_size)
    ]
    for step, whole in enumerate(alone):
        assert [key for part in parts for key in part[step].keys] == whole.keys
        for name in ("images", "masks", "world_to_camera"):
            assert torch.equal(torch.cat([getattr(part[step], name) for part in parts]), getattr(whole, name))


def test_more_workers_than_shards_and_uneven_shards(tmp_path: Path):
    samples = [encoded(make_sample(f"ball/{number}")) for number in range(7)]
    for folder, per_shard, shards in (("one", 100, [7]), ("uneven", 3, [3, 3, 1])):
        index = write_samples(tmp_path / folder, samples, per_shard=per_shard)
        assert [shard.nsamples for shard in index.shards] == shards
        steps = 2 * steps_of_an_epoch(tmp_path / folder)
        parts = [stream(tmp_path / folder, rank=rank, world_size=4, stop=steps) for rank in range(4)]
        keys = [[key for part in parts for key in part[step].keys] for step in range(steps)]
        assert keys == [batch.keys for batch in stream(tmp_path / folder, stop=steps)]
        assert (
            sorted(chain(*keys[: steps // 2]))
            == sorted(chain(*keys[steps // 2 :]))
            == sorted(sample.key for sample in samples)
        )


def test_an_epoch_has_every_sample_once_and_epochs_differ(toy_dataset: Path):
    steps = steps_of_an_epoch(toy_dataset)
    keys = [batch.keys for batch in stream(toy_dataset, stop=2 * steps)]
    first, second = list(chain(*keys[:steps])), list(chain(*keys[steps:]))
    table = SampleTable.select(load_index(str(toy_dataset)), "train")
    assert sorted(first) == sorted(second) == sorted(table.keys)
    assert first != second


@pytest.mark.parametrize("workers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_loader_processes_change_nothing(toy_dataset: Path, workers: int):
    plain, processes = stream(toy_dataset, stop=6), stream(toy_dataset, stop=6, workers=workers)
    for one, other in zip(plain, processes, strict=True):
        assert one.keys == other.keys
        for name in ("images", "masks", "smooth", "world_to_camera", "focal_length"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_starting_later_continues_exactly(toy_dataset: Path):
    whole, rest = stream(toy_dataset, stop=8), stream(toy_dataset, start=5, stop=8)
    for one, other in zip(whole[5:], rest, strict=True):
        assert one.keys == other.keys and torch.equal(one.images, other.images) and torch.equal(one.masks, other.masks)


def test_a_batch_has_the_stated_shapes_and_ranges(toy_dataset: Path):
    batch = stream(toy_dataset, stop=1)[0]
    assert batch.images.shape == (5, 3, 64, 64) and batch.masks.shape == batch.smooth.shape == (5, 3, 64, 64)
    assert batch.world_to_camera.shape == (5, 3, 4, 4) and batch.focal_length.shape == (5, 3)
    assert batch.images.min() >= 0 and batch.images.max() <= 1
    assert set(batch.masks.unique().tolist()) == {0.0, 1.0}, "binarised by default"
    corner = batch.images[:, :, 0, 0]
    assert torch.equal(corner, torch.ones_like(corner)), "composited on white"


def test_a_rank_without_samples_gets_an_empty_batch(toy_dataset: Path):
    steps = steps_of_an_epoch(toy_dataset, batch=4)
    samples = len(SampleTable.select(load_index(str(toy_dataset)), "train").keys)
    rest = samples % 4
    last = stream(toy_dataset, rank=3, world_size=4, batch=4, start=steps - 1, stop=steps)[0]
    assert len(last.keys) == (1 if rest in (0, 4) else 0)
    assert last.images.shape[1:] == (3, 64, 64)


def test_views_follow_the_configuration(toy_dataset: Path):
    index = load_index(str(toy_dataset))
    table = SampleTable.select(index, "train")
    sample = table.read(0)
    fixed = stream(toy_dataset, stop=steps_of_an_epoch(toy_dataset), view_order="fixed")
    for batch in fixed:
        for row, key in enumerate(batch.keys):
            if key == sample.key:
                assert np.allclose(batch.world_to_camera[row].numpy(), sample.world_to_camera[:3])
    with pytest.raises(UsageError, match="supervision_views=6"):
        check_views(DataConfig(supervision_views=6), index)


def test_mirroring_flips_images_masks_and_cameras_of_every_second_sample(toy_dataset: Path):
    plain, mixed = stream(toy_dataset, stop=6), stream(toy_dataset, stop=6, mirror=True)
    flips = []
    for one, other in zip(plain, mixed, strict=True):
        assert one.keys == other.keys
        for i in range(len(one.keys)):
            flips.append(not torch.equal(one.world_to_camera[i], other.world_to_camera[i]))
            cameras = mirrored_cameras(one.world_to_camera[i]) if flips[-1] else one.world_to_camera[i]
            assert torch.equal(other.world_to_camera[i], cameras)
            for name in ("images", "masks", "smooth"):
                expected = getattr(one, name)[i].flip(-1) if flips[-1] else getattr(one, name)[i]
                assert torch.equal(getattr(other, name)[i], expected)
    assert 0.2 < np.mean(flips) < 0.8
    again = stream(toy_dataset, start=3, stop=6, mirror=True)
    assert all(torch.equal(one.images, other.images) for one, other in zip(mixed[3:], again, strict=True))


def test_recolouring_changes_the_colours_inside_the_object_and_nothing_else(toy_dataset: Path):
    plain, recoloured = stream(toy_dataset, stop=6), stream(toy_dataset, stop=6, recolour=True)
    changed = 0
    for one, other in zip(plain, recoloured, strict=True):
        for name in ("masks", "smooth", "world_to_camera"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        background = (one.images == 1).all(1, keepdim=True).expand_as(one.images)
        assert torch.equal(one.images[background], other.images[background])
        assert other.images.min() >= 0 and other.images.max() <= 1
        changed += sum(not torch.equal(*pair) for pair in zip(one.images, other.images, strict=True))
    assert changed == sum(len(batch.keys) for batch in plain)
    again = stream(toy_dataset, start=3, stop=6, recolour=True)
    assert all(torch.equal(one.images, other.images) for one, other in zip(recoloured[3:], again, strict=True))
    following = stream(toy_dataset, start=6, stop=12, recolour=True, view_order="fixed")
    fixed = stream(toy_dataset, stop=6, recolour=True, view_order="fixed")
    pictures = [dict(zip(batch.keys, batch.images, strict=True)) for batch in (*fixed, *following)]
    epochs = [picture for batch in pictures for key, picture in batch.items() if key == fixed[0].keys[0]]
    assert len(epochs) > 1 and not torch.equal(epochs[0], epochs[1]), "other colours in the next epoch"


def test_all_views_of_an_object_get_the_same_colours(toy_dataset: Path):
    table = SampleTable.select(load_index(str(toy_dataset)), "train")
    configs = [DataConfig(supervision_views=3, binarize=False, recolour=recolour) for recolour in (False, True)]
    streams = [SampleStream(table, table.plan(0, 5), config, view_images=True) for config in configs]
    original, recoloured = (part[0, 0] for part in streams)
    assert isinstance(original, Example) and isinstance(recoloured, Example)
    assert original.view_images is not None and recoloured.view_images is not None
    seen: dict[tuple[float, ...], set[tuple[float, ...]]] = {}
    before, after = (part.view_images.movedim(1, -1).reshape(-1, 3) for part in (original, recoloured))
    inside = original.masks.reshape(-1) == 1  # wholly: at edges the background shines through
    for old, new in zip(before[inside].tolist(), after[inside].tolist(), strict=True):
        seen.setdefault(tuple(old), set()).add(tuple(round(value, 5) for value in new))
    assert len(seen) > 10 and all(len(colours) == 1 for colours in seen.values()), "one colour becomes one colour"


def test_categories_select_and_unknown_ones_are_refused(toy_dataset: Path):
    index = load_index(str(toy_dataset))
    assert {key.split("/")[0] for key in SampleTable.select(index, "train", ["slab"]).keys} == {"slab"}
    with pytest.raises(UsageError, match="chair"):
        SampleTable.select(index, "train", ["chair"])


def test_a_damaged_shard_becomes_failures_that_name_shard_and_key(toy_dataset: Path, tmp_path: Path):
    data = tmp_path / "data"
    shutil.copytree(toy_dataset, data)
    shard = sorted(data.glob("train-*.tar"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    steps = steps_of_an_epoch(data)
    failures = [failure for batch in stream(data, stop=steps) for failure in batch.failures]
    assert failures
    assert all(shard.name in failure.reason and failure.key in failure.reason for failure in failures)
    good = [key for batch in stream(data, stop=steps) for key in batch.keys]
    assert len(good) + len(failures) == len(SampleTable.select(load_index(str(data)), "train").keys)


def test_the_stream_verb_prints_the_keys(toy_dataset: Path, tmp_path: Path):
    arguments = ("seed=0", "global_batch=5", "world_size=2", "data.supervision_views=3")
    halves = [
        drwr("shards stream", f"data={toy_dataset}", *arguments, f"rank={r}", "start=2", "steps=3") for r in (0, 1)
    ]
    assert all(done.returncode == 0 for done in halves), halves[0].stderr
    lines = [[json.loads(line) for line in done.stdout.splitlines()] for done in halves]
    expected = stream(toy_dataset, stop=5)[2:]
    for step, one, other, batch in zip(range(2, 5), *lines, expected, strict=True):
        assert one["step"] == other["step"] == step
        assert one["keys"] + other["keys"] == batch.keys


def test_the_stream_verb_refuses_nonsense(toy_dataset: Path, tmp_path: Path):
    assert call("shards stream", f"data={toy_dataset}", "rank=2", "world_size=2").returncode == 2
    for wrong in ("data.on_bad_sample=fial", "data.view_order=fxied", "seed=-1", "loader.workers=abc", "split=tset"):
        done = call("shards stream", f"data={toy_dataset}", wrong)
        assert done.returncode == 2 and wrong in done.stderr and done.stderr.count("\n") == 1, done.stderr
    missing = call("shards stream", f"data={tmp_path / 'nothing'}")
    assert missing.returncode == 1 and "no such folder" in missing.stderr and "Traceback" not in missing.stderr


def test_a_split_without_samples_is_an_error(toy_dataset: Path):
    with pytest.raises(DataError, match="nowhere"):
        SampleTable.select(load_index(str(toy_dataset)), "nowhere")


def test_resuming_reads_nothing_that_came_before(toy_dataset: Path, tmp_path: Path):
    """Shards that are done with may be gone: a stream that starts later never opens them."""
    data = tmp_path / "data"
    shutil.copytree(toy_dataset, data)
    table = SampleTable.select(load_index(str(data)), "train")
    plan = table.plan(0, 1)
    start = plan.steps_per_epoch - 3
    needed = {table.places[int(batch[0])][0] for batch in plan.epoch_batches(0)[start:]}
    gone = [shard.url for number, shard in enumerate(table.index.shards) if number not in needed]
    assert gone
    for url in gone:
        (data / url).unlink()
    rest = stream(data, batch=1, start=start, stop=plan.steps_per_epoch)
    assert [len(batch.keys) for batch in rest] == [1, 1, 1]


def test_cached_samples_are_the_same_and_bounded(toy_dataset: Path):
    table = SampleTable.select(load_index(str(toy_dataset)), "train")
    plan = table.plan(0, 4)
    cold = SampleStream(table, plan, DataConfig(supervision_views=3), cache_megabytes=0)
    warm = SampleStream(table, plan, DataConfig(supervision_views=3), cache_megabytes=1)
    for epoch in (0, 1):
        for sample in range(len(table.keys)):
            one, other = cold[epoch, sample], warm[epoch, sample]
            assert isinstance(one, Example) and isinstance(other, Example)
            assert torch.equal(one.image, other.image) and torch.equal(one.smooth, other.smooth)
    kept = sum(
        part.nbytes
        for sample in warm.cache.values()
        for parts in (sample.pixels, sample.alphas, sample.squares)
        for part in parts.values()
        if part is not None
    )
    kept += sum(len(file) for sample in warm.cache.values() for file in sample.files.values())
    assert not cold.cache and 0 < kept <= 2**20


def test_automatic_loader_processes(toy_dataset: Path):
    """None where the cache holds everything; else the cores that training leaves."""
    table = SampleTable.select(load_index(str(toy_dataset)), "train")
    assert loader_processes(LoaderConfig(), table, cores=8) == 0
    small = LoaderConfig(cache_megabytes=1)
    assert [loader_processes(small, table, cores) for cores in (1, 2, 16)] == [0, 1, 4]
    assert [loader_processes(LoaderConfig(), table, cores, gpu=True) for cores in (1, 2, 16)] == [0, 1, 8]
    large = replace(table, index=replace(table.index, image_size=256))  # distances there take 4 bytes
    needed = len(table.keys) * table.index.views * 8 * 256**2 / 2**20
    room = [LoaderConfig(cache_megabytes=int(needed) + more) for more in (-1, 1)]
    assert [loader_processes(each, large, cores=2) for each in room] == [1, 0]
    assert loader_processes(LoaderConfig(workers="3"), table, cores=1) == 3
