from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from shard_tools import encoded, make_balls, make_sample, write_samples

from drwr_dist.data.depth import depth_step, to_levels
from drwr_dist.data.index import DatasetIndex, load_index, read_sample
from drwr_dist.data.sample import ObjectSample, decode_sample, encode_png, encode_sample, split_members
from drwr_dist.data.verify import Finding, verify_dataset
from drwr_dist.data.writer import EncodedSample, index_json
from drwr_dist.errors import DataError


@pytest.fixture
def balls(tmp_path: Path) -> DatasetIndex:
    return make_balls(tmp_path)


def lines(index: DatasetIndex) -> str:
    return "\n".join(str(finding) for finding in verify_dataset(index.root))


def header(index: DatasetIndex, position: int, member: int) -> int:
    """Byte of the header of a member of the first shard's sample."""
    place = index.shards[0].offsets[position]
    for data in list(split_members(read_sample(index, 0, position)).values())[:member]:
        place += 512 + -(-len(data) // 512) * 512
    return place


def change_byte(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0x55]))


def test_sound(balls: DatasetIndex):
    seen: list[tuple[int, int]] = []
    assert verify_dataset(balls.root, lambda *state: seen.append(state)) == []
    assert seen == [(number, 11) for number in range(1, 12)]


def test_cut_at_a_member_boundary(balls: DatasetIndex):
    path = Path(balls.root, balls.shards[0].url)
    os.truncate(path, header(balls, 2, 4))
    assert len(list(webdataset.WebDataset(str(path), shardshuffle=False))) == 3  # webdataset notices nothing
    found = lines(balls)
    assert f"{path.name}: truncated: " in found
    assert f"{path.name}: {balls.shards[0].keys[2]}: truncated: " in found
    assert f"{path.name}: {balls.shards[0].keys[2]}: cameras.json: missing from the sample" in found
    assert f"{path.name}: {balls.shards[0].keys[3]}: truncated: 0 of " in found
    assert balls.shards[0].keys[1] not in found


def test_cut_at_a_sample_boundary(balls: DatasetIndex):
    path = Path(balls.root, balls.shards[0].url)
    os.truncate(path, balls.shards[0].offsets[3])
    assert f"{path.name}: {balls.shards[0].keys[3]}: truncated" in lines(balls)


def test_corrupt_tar_header(balls: DatasetIndex):
    path = Path(balls.root, balls.shards[0].url)
    change_byte(path, header(balls, 1, 0) + 150)
    assert len(list(webdataset.WebDataset(str(path), shardshuffle=False))) < 4  # webdataset notices nothing
    found = lines(balls)
    assert f"{path.name}: damaged: sha256" in found
    assert f"{path.name}: {balls.shards[0].keys[1]}: damaged: " in found
    assert balls.shards[0].keys[2] not in found


def test_payload_rot(balls: DatasetIndex):
    path = Path(balls.root, balls.shards[0].url)
    change_byte(path, header(balls, 1, 1) + 540)
    found = lines(balls)
    assert f"{path.name}: {balls.shards[0].keys[1]}: damaged: the bytes don't match their checksum" in found
    assert f"{path.name}: {balls.shards[0].keys[1]}: 00.mask.png: damaged" in found


def test_rot_after_the_last_sample(balls: DatasetIndex):
    change_byte(Path(balls.root, balls.shards[0].url), balls.shards[0].end + 700)
    assert "there is data after the last sample" in lines(balls)


def test_empty_file(balls: DatasetIndex):
    os.truncate(Path(balls.root, balls.shards[1].url), 0)
    found = lines(balls)
    assert f"{balls.shards[1].url}: empty file" in found
    assert all(key in found for key in balls.shards[1].keys)


def test_missing_shard(balls: DatasetIndex):
    Path(balls.root, balls.shards[1].url).unlink()
    found = lines(balls)
    assert f"{balls.shards[1].url}: the shard is missing" in found
    assert all(f"{balls.shards[1].url}: {key}: the shard is missing" in found for key in balls.shards[1].keys)


def test_longer_file(balls: DatasetIndex):
    with Path(balls.root, balls.shards[0].url).open("ab") as file:
        file.write(bytes(512))
    assert "too long" in lines(balls)


def rewrite(index: DatasetIndex, change: Callable[[dict[str, bytes]], object]) -> None:
    """Rewrite the first shard with webdataset itself, its second sample changed, and an index that fits it."""
    shard = index.shards[0]
    members = [split_members(read_sample(index, 0, position)) for position in range(shard.nsamples)]
    change(members[1])
    path, offsets = Path(index.root, shard.url), []
    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False) as tar:
        for key, sample in zip(shard.keys, members, strict=True):
            offsets.append(tar.tarstream.offset)
            tar.write({"__key__": key, **sample})
        end = tar.tarstream.offset
    data = path.read_bytes()
    ends = [*offsets[1:], end]
    fitting = dataclasses.replace(
        shard,
        offsets=tuple(offsets),
        end=end,
        filesize=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        crc32=tuple(zlib.crc32(data[a:b]) for a, b in zip(offsets, ends, strict=True)),
    )
    new = dataclasses.replace(index, shards=(fitting, *index.shards[1:]))
    Path(index.root, "index.json").write_text(index_json(new))


def move_camera(members: dict[str, bytes], column: int, by: float) -> None:
    cameras = json.loads(members["cameras.json"])
    cameras["world_to_camera"][2][column][3] += by
    members["cameras.json"] = json.dumps(cameras).encode()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.pop("01.image.png"), "01.image.png: missing"),
        (lambda m: m.update({"01.mask.png": m["01.mask.png"][:-30]}), "01.mask.png: damaged"),
        (lambda m: move_camera(m, 0, 3.0), "view 02: the camera puts the object out of the frame"),
        (lambda m: move_camera(m, 2, -4.0), "view 02: the camera puts the object out of the frame"),
        (lambda m: move_camera(m, 0, 0.1), "view 02: camera and mask don't belong together: only"),
        (lambda m: m.pop("meta.json"), "meta.json: missing"),
    ],
)
def test_a_whole_file_with_a_bad_sample(balls: DatasetIndex, change: Callable, reason: str):
    rewrite(balls, change)
    found = verify_dataset(balls.root)
    assert [(finding.shard, finding.key) for finding in found] == [(balls.shards[0].url, balls.shards[0].keys[1])]
    assert reason in found[0].reason


def test_the_contents_of_a_changed_shard_are_judged_too(balls: DatasetIndex):
    text = Path(balls.root, "index.json").read_text()
    rewrite(balls, lambda members: members.pop("01.image.png"))
    Path(balls.root, "index.json").write_text(text)
    found = lines(balls)
    assert f"{balls.shards[0].keys[1]}: 01.image.png: missing" in found


def empty_mask(sample: ObjectSample) -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", np.zeros_like(sample.masks[0]))[1].tobytes())


def test_empty_mask(balls: DatasetIndex):
    rewrite(balls, lambda members: members.update({"02.mask.png": empty_mask(make_sample())}))
    assert "02.mask.png: the mask is empty" in lines(balls)


def test_voxels_that_are_not_on_the_masks(tmp_path: Path):
    place = (np.arange(32) + 0.5) / 32 - 0.5
    sample = make_sample()
    sample.occupancy = (place[:, None, None] ** 2 + place[:, None] ** 2 + place**2) < 0.4**2
    write_samples(tmp_path / "sound", [encoded(sample)])
    assert verify_dataset(str(tmp_path / "sound")) == []
    sample.occupancy = np.roll(sample.occupancy, 9, axis=1)
    write_samples(tmp_path / "shifted", [encoded(sample)])
    assert "occupancy.npy: view 00: camera and mask don't belong together: only" in str(
        verify_dataset(str(tmp_path / "shifted"))[0]
    )


class TestDepth:
    """The disc of `make_sample` as if all of it were at depth 2."""

    def write(self, folder: Path, change: Callable[[ObjectSample, dict[str, bytes]], object]) -> str:
        sample = make_sample(points=False)
        sample.depths = to_levels(np.where(sample.masks > 0, np.float32(2), np.float32(0)), depth_step(2.0))
        sample.meta["depth_step"] = depth_step(2.0)
        members = dict(encode_sample(sample))
        change(sample, members)
        members["meta.json"] = json.dumps(sample.meta).encode()
        write_samples(folder, [EncodedSample(sample.key, "train", members, "test", "CC0-1.0")])
        return "\n".join(str(finding) for finding in verify_dataset(str(folder)))

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda s, m: None, None),
            (lambda s, m: s.meta.update(depth_step=None), None),
            (lambda s, m: m.pop("01.depth.png"), "01.depth.png: missing; other views have depth"),
            (lambda s, m: m.update({"03.depth.png": m["01.depth.png"]}), "03.depth.png: has no camera"),
            (lambda s, m: m.update({"1.depth.png": m.pop("01.depth.png")}), "1.depth.png: has no camera"),
            (lambda s, m: m.update({"01.depth.png": m["01.depth.png"][:-20]}), "01.depth.png: damaged"),
            (lambda s, m: m.update({"01.depth.png": m["01.mask.png"]}), "01.depth.png: not a 16-bit grey PNG"),
            (lambda s, m: m.update({"01.depth.png": encode_png(s.depths[1, ::2, ::2], "quick")}), "not as large as"),
            (
                lambda s, m: m.update({"01.depth.png": encode_png(s.depths[1] * 0, "quick")}),
                "differ in where",
            ),
            (lambda s, m: s.meta.update(depth_step=1e-3), "depth and camera don't belong together: only 0%"),
            (lambda s, m: s.meta.update(depth_step="2"), "depth_step is '2', neither a positive number nor null"),
        ],
    )
    def test_what_is_found(self, tmp_path: Path, change: Callable, reason: str | None):
        found = self.write(tmp_path, change)
        assert (found == "") if reason is None else (reason in found), found

    def test_readers_pass_it_over(self, tmp_path: Path):
        self.write(tmp_path, lambda sample, members: None)
        index = load_index(tmp_path)
        decoded = decode_sample(split_members(read_sample(index, 0, 0)), key="ball/a", shard="s")
        assert decoded.depths is None and len(decoded.images) == 3


class TestWithoutGroundTruth:
    @pytest.mark.parametrize(
        ("axis", "by", "reason"),
        [
            (0, 0.0, None),
            (0, 5.0, "out of the frame"),
            (2, -5.0, "out of the frame"),
            (0, 1.2, "reaches out of the picture of the unit cube"),
            (2, -2.0, None),  # a camera in the cube: nothing to compare with
        ],
    )
    def test_cameras(self, tmp_path: Path, axis: int, by: float, reason: str | None):
        sample = make_sample(points=False)
        sample.world_to_camera[1, axis, 3] += by
        write_samples(tmp_path, [encoded(sample)])
        found = verify_dataset(str(tmp_path))
        assert [finding.key for finding in found] == (["ball/a"] if reason else [])
        assert reason is None or (reason in found[0].reason and "view 01" in found[0].reason)


def test_near_duplicates_in_two_splits(tmp_path: Path):
    samples = [
        encoded(make_sample("ball/a", group="twins"), "train"),
        encoded(make_sample("ball/b", group="twins"), "train"),
        encoded(make_sample("ball/c", group="twins"), "test"),
    ]
    write_samples(tmp_path, samples)
    assert verify_dataset(str(tmp_path)) == [
        Finding("test-000000.tar", "ball/c", "in split test, but its near-duplicate ball/a (group twins) is in train")
    ]


def test_index_that_promises_other_shapes(balls: DatasetIndex):
    path = Path(balls.root, "index.json")
    raw = json.loads(path.read_text())
    raw["drwr"] |= {"views": 2, "image_size": 64, "categories": {"ball": {"train": 7, "val": 2, "test": 3}}}
    path.write_text(json.dumps(raw))
    found = lines(load_index(balls.root))
    assert "3 views, the index says at most 2" in found
    assert "images of 32 × 32 pixels, the index says 64" in found
    assert "category ball, split train: 7 objects promised, 6 listed" in found


def test_no_dataset(tmp_path: Path):
    with pytest.raises(DataError, match=r"no index\.json"):
        verify_dataset(str(tmp_path))
