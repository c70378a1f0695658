"""Objects whose views are decoded when they are asked for: what is written, what is kept, what fails and when."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_tools import SIDE, encoded, make_sample, write_samples

from drwr_dist.config import DataConfig
from drwr_dist.data.batch import Failure
from drwr_dist.data.decoded import Decoded
from drwr_dist.data.members import tar_files
from drwr_dist.data.sample import ObjectSample, composite, encode_sample
from drwr_dist.data.specks import without_specks
from drwr_dist.data.stream import SampleStream, SampleTable
from drwr_dist.errors import DataError
from drwr_dist.silhouette import binarize, smooth_silhouette


def soft(levels: list[int]) -> np.ndarray:
    """Return a mask of a few alpha levels."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for place, level in enumerate(levels):
        mask[4 + place : 20, 6 + place : 22 - place] = level
    return mask


def opened(sample: ObjectSample, *, binary: bool, side: int = SIDE) -> Decoded:
    return Decoded.of(encode_sample(sample), key="ball/a", shard="s.tar", side=side, background=1.0, binary=binary)


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("levels", [[255], [100, 153, 255], [200, 242], [1, 243]])
def test_what_is_written_is_what_the_definitions_say(binary: bool, levels: list[int]):
    sample = make_sample()
    sample.masks[1] = soft(levels)
    decoded = opened(sample, binary=binary)
    for view in (1, 0, 1):
        image = np.empty((3, SIDE, SIDE), np.float32)
        mask, smooth = np.empty((2, SIDE, SIDE), np.float32)
        decoded.write_silhouette(view, mask, smooth)
        decoded.write_picture(view, image)
        alpha = torch.from_numpy(sample.masks[view])
        expected = (binarize(alpha) if binary else alpha).float() / 255
        assert torch.equal(torch.from_numpy(mask), expected)
        torch.testing.assert_close(torch.from_numpy(smooth), smooth_silhouette(expected), atol=1e-6, rtol=0)
        laid = composite(sample.images[view], sample.masks[view], 1.0)
        assert np.array_equal(image, laid.transpose(2, 0, 1).astype(np.float32) / np.float32(255))


def square_with_noise(share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask of a square with a thin leg, and the same with a share of its pixels flipped."""
    clean = np.zeros((64, 64), np.uint8)
    clean[20:44, 20:44], clean[44:58, 30:31] = 255, 255
    flipped = np.random.default_rng(seed).random(clean.shape) < share
    return clean, np.where(flipped, 255 - clean, clean).astype(np.uint8)


@given(seed=st.integers(0, 2**31), smallest=st.integers(2, 30))
@settings(max_examples=30, deadline=None)
def test_specks_are_taken_out_and_nothing_else(seed: int, smallest: int):
    clean, noisy = square_with_noise(0.04, seed)
    assert np.array_equal(without_specks(clean, smallest), clean)
    found = without_specks(noisy, smallest)
    assert np.array_equal(without_specks(found, smallest), found)
    for inside, neighbours in ((found > 0, 8), (found == 0, 4)):
        areas = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=neighbours)[2][1:, -1]
        assert np.sort(areas)[:-1].min(initial=smallest) >= smallest
    if smallest >= 10:  # larger than single wrong pixels make
        far = cv2.dilate(clean, np.ones((9, 9), np.uint8)) == 0
        assert not found[far].any()
        assert (found[24:40, 24:40] == 255).all()


def test_an_object_that_is_a_speck_itself_stays():
    alpha = np.zeros((16, 16), np.uint8)
    alpha[3, 4], alpha[9:11, 9] = 255, 180
    found = without_specks(alpha, 50)
    assert found[3, 4] == 0
    assert (found[9:11, 9] == 180).all()


def test_despeckled_masks_are_those_of_the_clean_object():
    noisy = square_with_noise(0.03, 1)[1]
    sample = make_sample()
    sample.masks[1] = cv2.resize(noisy, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    files = encode_sample(sample)
    about = {"key": "ball/a", "shard": "s.tar", "side": SIDE, "background": 1.0, "binary": True}
    mask, smooth = np.empty((2, SIDE, SIDE), np.float32)
    Decoded.of(files, **about, despeckle=8).write_silhouette(1, mask, smooth)
    expected = torch.from_numpy(without_specks(sample.masks[1], 8)).float() / 255
    assert torch.equal(torch.from_numpy(mask), expected)
    torch.testing.assert_close(torch.from_numpy(smooth), smooth_silhouette(expected), atol=1e-6, rtol=0)
    assert not np.array_equal(sample.masks[1], without_specks(sample.masks[1], 8))


@pytest.mark.parametrize("binary", [True, False])
def test_despeckling_leaves_the_pictures_as_whoever_predicts_has_them(binary: bool):
    sample = make_sample()
    sample.masks[1] = cv2.resize(square_with_noise(0.03, 1)[1], (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
    files = encode_sample(sample)
    about = {"key": "ball/a", "shard": "s.tar", "side": SIDE, "background": 1.0, "binary": binary}
    mask, smooth, plain, cleaned = (np.empty(shape, np.float32) for shape in [(SIDE, SIDE)] * 2 + [(3, SIDE, SIDE)] * 2)
    Decoded.of(files, **about).write_picture(1, plain)
    decoded = Decoded.of(files, **about, despeckle=8)
    decoded.write_silhouette(1, mask, smooth)
    decoded.write_picture(1, cleaned)
    assert np.array_equal(plain, cleaned)
    assert np.array_equal(mask > 0.5, without_specks(sample.masks[1], 8) > 127)


def test_distances_too_long_for_16_bits_are_exact():
    sample = make_sample()
    side = 200
    sample.images = np.zeros((3, side, side, 3), np.uint8)
    sample.masks = np.zeros((3, side, side), np.uint8)
    sample.masks[:, 0, 0] = 255
    mask, smooth = np.empty((2, side, side), np.float32)
    decoded = opened(sample, binary=True, side=side)
    decoded.write_silhouette(0, mask, smooth)
    expected = smooth_silhouette(torch.from_numpy(mask))
    torch.testing.assert_close(torch.from_numpy(smooth), expected, atol=1e-6, rtol=0)
    assert mask.sum() == 1 and sum(part.nbytes for part in decoded.squares.values() if part is not None) == 4 * side**2


def test_each_file_is_decoded_once_and_then_forgotten():
    decoded = opened(make_sample(), binary=True)
    room, mask = decoded.bytes, np.empty((SIDE, SIDE), np.float32)
    assert len(decoded.files) == 6
    decoded.write_silhouette(2, mask, mask.copy())
    assert sorted(set(decoded.files) ^ {f"{v:02d}.{k}.png" for v in range(3) for k in ("image", "mask")}) == [
        "02.mask.png"
    ]
    for view in range(3):
        decoded.write_picture(view, np.empty((3, SIDE, SIDE), np.float32))
        decoded.write_silhouette(view, mask, mask.copy())
    parts = [*decoded.pixels.values(), *decoded.alphas.values(), *decoded.squares.values()]
    assert not decoded.files and sum(part.nbytes for part in parts if part is not None) <= room


def test_damage_is_found_where_a_view_is_used_and_names_its_file(tmp_path: Path):
    sample = encoded(make_sample())
    sample = dataclasses.replace(sample, members={**sample.members, "02.mask.png": b"rot"})
    table = SampleTable.select(write_samples(tmp_path, [sample]), "train")
    for megabytes in (0, 16):
        good = SampleStream(table, table.plan(0, 1), DataConfig(supervision_views=2, view_order="fixed"), megabytes)
        bad = SampleStream(table, table.plan(0, 1), DataConfig(supervision_views=3, view_order="fixed"), megabytes)
        for _ in range(2):
            assert not isinstance(good[0, 0], Failure)
            failure = bad[0, 0]
            assert isinstance(failure, Failure)
            assert failure.reason == f"{table.index.shards[0].url}: ball/a: 02.mask.png: not a PNG"


def test_an_image_of_another_size_than_the_index_says_is_refused():
    decoded = opened(make_sample(), binary=True, side=2 * SIDE)
    with pytest.raises(DataError, match=r"s\.tar: ball/a: 00\.mask\.png: wrong size: 32 pixels a side, expected 64"):
        decoded.write_picture(0, np.empty((3, 2 * SIDE, 2 * SIDE), np.float32))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "name", ["ball/a.00.mask.png", "ball/" + "ä" * 40 + ".json", "b" * 70 + "/" + "c" * 80 + ".json"]
)
def test_every_kind_of_tar_header_is_read(kind: int, name: str):
    contents = {name: bytes(range(256)) * 3, "ball/a.meta.json": b"{}", "ball/empty.json": b""}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        folder = tarfile.TarInfo("ball")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for member, content in contents.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    whole = buffer.getvalue()
    assert dict(tar_files(whole)) == contents
    with pytest.raises(tarfile.TarError):
        tar_files(whole[: whole.rindex(b"{}") + 1])
