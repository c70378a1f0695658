from __future__ import annotations

import io
import json
import tarfile
import zlib
from pathlib import Path

import pytest
import webdataset
from shard_tools import VIEWS, encoded, make_balls, make_sample, write_samples

from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.sample import decode_sample, encode_sample, split_members
from drwr_dist.data.writer import write_atomically
from drwr_dist.errors import DataError, UsageError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_files_and_index(tmp_path: Path):
    written = make_balls(tmp_path)
    assert sorted(contents(tmp_path)) == [
        "index.json", "test-000000.tar", "train-000000.tar", "train-000001.tar", "val-000000.tar",
    ]  # fmt: skip
    assert load_index(str(tmp_path)) == written
    raw = json.loads((tmp_path / "index.json").read_text())
    assert raw["wids_version"] == 1
    assert {"url", "nsamples", "filesize", "sha256", "split", "offsets", "keys", "crc32", "end"} <= set(
        raw["shardlist"][0]
    )
    assert raw["drwr"] == {
        "schema_version": 1,
        "image_size": 32,
        "views": VIEWS,
        "focal_length": 1.875,
        "categories": {"ball": {"train": 6, "val": 2, "test": 3}},
        "sources": {"test": 11},
        "licences": {"CC0-1.0": 11},
    }


def test_each_range_is_one_sample(tmp_path: Path):
    index = make_balls(tmp_path)
    for number, shard in enumerate(index.shards):
        data = (tmp_path / shard.url).read_bytes()
        assert not any(data[shard.end :])
        for position, key in enumerate(shard.keys):
            start, stop = shard.byte_range(position)
            assert zlib.crc32(data[start:stop]) == shard.crc32[position]
            with tarfile.open(fileobj=io.BytesIO(data[start:stop])) as tar:
                names = tar.getnames()
            assert names == [f"{key}.{name}" for name in encode_sample(make_sample(key))]
            members = split_members(read_sample(index, number, position), key=key)
            assert members == encode_sample(make_sample(key))


def test_plain_webdataset_reads_the_shards(tmp_path: Path):
    index = make_balls(tmp_path)
    urls = [str(tmp_path / shard.url) for _, shard in index.split("train")]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [sample["__key__"] for sample in samples] == [key for _, _, key in index.select("train")]
    assert samples[0]["00.image.png"].shape == (32, 32, 3)
    assert len(samples[0]["cameras.json"]["world_to_camera"]) == VIEWS
    assert samples[0]["points.npy"].shape == (200, 3)


def test_same_samples_same_bytes(tmp_path: Path):
    make_balls(tmp_path / "a")
    make_balls(tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_shards_are_closed_by_size(tmp_path: Path):
    samples = [encoded(make_sample(f"ball/{number}")) for number in range(5)]
    one = sum(512 + -(-len(data) // 512) * 512 for data in samples[0].members.values())
    from drwr_dist.data.writer import ShardLimits, write_dataset

    index = write_dataset(
        tmp_path, samples, name="t", image_size=32, views=3, focal_length=1.0, limits=ShardLimits(size=2 * one + 2048)
    )
    assert [shard.nsamples for shard in index.shards] == [2, 2, 1]


def test_a_finished_dataset_is_not_replaced_by_accident(tmp_path: Path):
    make_balls(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="overwrite=true"):
        make_balls(tmp_path)
    assert contents(tmp_path) == before


def test_overwriting_leaves_no_old_shards(tmp_path: Path):
    make_balls(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    write_samples(tmp_path, [encoded(make_sample("ball/z"))], overwrite=True)
    assert sorted(contents(tmp_path)) == ["index.json", "notes.txt", "train-000000.tar"]


def test_a_failed_import_leaves_the_old_dataset(tmp_path: Path):
    make_balls(tmp_path)
    before = contents(tmp_path)

    def samples():
        yield encoded(make_sample("ball/new"))
        raise DataError("the second mesh is broken")

    with pytest.raises(DataError, match="second mesh"):
        write_samples(tmp_path, samples(), overwrite=True)  # type: ignore[arg-type]
    assert contents(tmp_path) == before


def test_a_failed_import_leaves_no_dataset(tmp_path: Path):
    def samples():
        yield encoded(make_sample("ball/new"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_samples(tmp_path, samples())  # type: ignore[arg-type]
    assert contents(tmp_path) == {}


def test_a_key_twice_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="two objects have the key 'ball/a'"):
        write_samples(tmp_path, [encoded(make_sample()), encoded(make_sample())])


def test_nothing_to_write_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="no object was imported"):
        write_samples(tmp_path, [])


def test_samples_without_ground_truth(tmp_path: Path):
    index = write_samples(tmp_path, [encoded(make_sample(points=False))])
    members = split_members(read_sample(index, 0, 0))
    assert "points.npy" not in members
    assert decode_sample(members, key="ball/a", shard="s", with_points=True).points is None


def test_write_atomically_leaves_the_old_file_when_it_fails(tmp_path: Path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert contents(tmp_path) == {"file": b"old"}
