from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from view_layouts import (
    SIDE,
    Rendered,
    contents,
    example,
    features_of,
    field,
    framed,
    read_all,
    render_blender,
    run_command,
    run_import,
    share_on_masks,
    write_dpc,
    write_records,
)

from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError
from drwr_dist.silhouette import binarize, smooth_silhouette
from drwr_dist.sources.crc32c import crc32c, masked_crc32c
from drwr_dist.sources.tfrecord_file import parse_example, read_records

CHAIRS = [f"chair{number}" for number in range(4)]


@pytest.fixture(scope="module")
def models() -> dict[str, Rendered]:
    return {name: render_blender(seed) for seed, name in enumerate(CHAIRS)}


@pytest.fixture
def records(models: dict[str, Rendered]) -> dict[str, bytes]:
    return {name: example(features_of(name, model)) for name, model in models.items()}


@pytest.fixture
def root(records: dict[str, bytes], models: dict[str, Rendered], tmp_path: Path) -> Path:
    """Two categories, gzip and plain, with ground truth beside them."""
    folder = tmp_path / "data/tf_records"
    write_records(folder / "03001627_train.tfrecords", [records["chair0"], records["chair1"]], compressed=True)
    write_records(folder / "03001627_test.tfrecords", [records["chair2"]])
    write_records(folder / "02691156_train_pixel2pixel_5000_all.tfrecords", [records["chair3"]])
    write_dpc(tmp_path / "data", {f"03001627/{name}": models[name] for name in CHAIRS[:3]})
    return tmp_path / "data"


class TestImport:
    @pytest.mark.parametrize("camera", ["position", "extrinsic"])
    def test_ground_truth_projects_onto_the_masks(
        self, root: Path, models: dict[str, Rendered], tmp_path: Path, camera: str
    ):
        run_command("tfrecords", root, tmp_path / "out", f"camera={camera}", "image_size=64")
        assert verify_dataset(str(tmp_path / "out")) == []
        found = read_all(tmp_path / "out")
        assert {key: split for key, (split, _) in found.items()} == {
            "03001627/chair0": "train",
            "03001627/chair1": "train",
            "03001627/chair2": "test",
            "02691156/chair3": "train",
        }
        for key, (_, sample) in found.items():
            points = models[key.split("/")[1]].points @ np.array(sample.meta["similarity"]["rotation"]).T
            assert share_on_masks(points, sample) >= 0.999
            assert share_on_masks(points * (-1, 1, -1), sample) < 0.95
            assert (sample.points is None) == (key == "02691156/chair3")

    def test_pixels_come_back(self, root: Path, models: dict[str, Rendered], tmp_path: Path):
        run_import("tfrecords", root, tmp_path / "out")
        for key, (_, sample) in read_all(tmp_path / "out").items():
            model = models[key.split("/")[1]]
            assert np.array_equal(sample.masks, model.masks)
            # The records hold RGB on white rounded to 8 bits: a faint pixel's own colour is only roughly known.
            solid = model.masks > 100
            assert np.abs(sample.images[solid].astype(int) - model.images[solid]).max() <= 2
            assert (sample.images[model.masks == 0] == 0).all()

    def test_bytes_do_not_depend_on_the_number_of_workers(self, root: Path, tmp_path: Path):
        for workers in (1, 2):
            run_import("tfrecords", root, tmp_path / str(workers), workers=workers, name="same", views=3)
        assert contents(tmp_path / "1") == contents(tmp_path / "2")

    def test_smooth_silhouettes_stand_in_for_masks(self, models: dict[str, Rendered], tmp_path: Path):
        import torch

        binary = binarize(models["chair0"].masks)
        smooth = smooth_silhouette(torch.from_numpy(binary / 255.0)).numpy()[..., None]
        for name in ("mask_sdf", "mask_sdfs"):
            features = features_of("chair0", models["chair0"], mask=None, **{name: smooth})
            write_records(tmp_path / name / "1_train.tfrecords", [example(features)])
            run_import("tfrecords", tmp_path / name, tmp_path / name / "out")
            assert np.array_equal(read_all(tmp_path / name / "out")["1/chair0"][1].masks, binary)

    def test_without_a_split_in_the_name(self, records: dict[str, bytes], tmp_path: Path):
        write_records(tmp_path / "chairs.tfrecords.gz", list(records.values()), compressed=True)
        run_import("tfrecords", tmp_path / "chairs.tfrecords.gz", tmp_path / "out")
        splits = [split for split, _ in read_all(tmp_path / "out").values()]
        assert len(splits) == 4 and splits.count("train") == 3

    def test_one_object_in_two_files(self, root: Path, records: dict[str, bytes], tmp_path: Path):
        write_records(root / "tf_records/03001627_val.tfrecords", [records["chair0"]])
        with pytest.raises(DataError, match=r"03001627/chair0 is in .* too"):
            run_import("tfrecords", root, tmp_path / "out")

    def test_usage(self, tmp_path: Path):
        with pytest.raises(UsageError, match=r"no <synset>_<split>\.tfrecords"):
            run_import("tfrecords", tmp_path, tmp_path / "out")


class TestFeatures:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"name": None}, "feature 'name' must be one string; the record has cam_pos, depth"),
            ({"name": "../../x"}, "not a model id"),
            ({"mask": None}, "feature 'mask' must be a list of floats"),
            ({"image": None}, "feature 'image' must be a list of floats"),
            ({"image": np.zeros(100)}, "feature 'image' has 100 values"),
            ({"mask": np.zeros(101)}, "feature 'mask' has 101 values: not 5 square images"),
            ({"cam_pos": None}, "feature 'cam_pos'"),
            ({"cam_pos": np.zeros((5, 3))}, "away from the origin"),
            ({"cam_pos": [1, 2, 3]}, "feature 'cam_pos' must be a list of floats"),
            ({"cam_pos": np.full((5, 3), np.inf)}, "feature 'cam_pos' is not finite"),
            ({"cam_pos": np.zeros(0)}, "feature 'cam_pos' has 0 values"),
            ({"mask": np.zeros((5, SIDE, SIDE))}, "the mask is empty"),
        ],
    )
    def test_what_is_missing_or_wrong_is_named(
        self, models: dict[str, Rendered], tmp_path: Path, changes: dict[str, object], reason: str
    ):
        path = tmp_path / "1_train.tfrecords"
        good = example(features_of("chair0", models["chair0"]))
        write_records(path, [good, example(features_of("chair1", models["chair1"], **changes))])
        with pytest.raises(DataError, match=reason) as caught:
            run_import("tfrecords", tmp_path, tmp_path / "out")
        assert f"{path}: record 1: " in str(caught.value)
        run_import("tfrecords", tmp_path, tmp_path / "out", skip_bad=True)
        assert list(read_all(tmp_path / "out")) == ["1/chair0"]

    def test_examples_of_any_encoding(self):
        floats = np.array([1.5, -2.0], "<f4")
        unpacked = b"".join(b"\x0d" + value.tobytes() for value in floats)
        record = field(1, field(1, field(1, b"a") + field(2, field(2, unpacked))))
        assert parse_example(record)["a"].tolist() == [1.5, -2.0]
        assert parse_example(example({"b": [1, 300], "c": "x"}))["c"] == [b"x"]
        assert parse_example(example({"b": [1, 300]}))["b"].tolist() == [1, 300]
        with pytest.raises(DataError, match=r"not a tf\.train\.Example"):
            parse_example(b"\xff\xff\xff")


class TestDamage:
    @pytest.mark.parametrize("compressed", [False, True])
    def test_no_flipped_bit_and_no_cut_goes_unnoticed(
        self, records: dict[str, bytes], tmp_path: Path, compressed: bool
    ):
        path = tmp_path / "1_train.tfrecords"
        small = [example({"name": name, "cam_pos": np.ones((5, 3))}) for name in CHAIRS]
        write_records(path, small, compressed)
        whole, random = path.read_bytes(), np.random.default_rng(0)
        good = [record for record, _ in read_records(path, 10**6)]
        assert good == small
        frames = {0, *np.cumsum([len(framed(record)) for record in small]).tolist()}
        for place in random.integers(12 if compressed else 0, len(whole), 60).tolist():
            rotten = bytearray(whole)
            rotten[place] ^= 1 << int(random.integers(8))
            path.write_bytes(bytes(rotten))
            with pytest.raises(DataError, match=r"1_train\.tfrecords: record \d"):
                run_import("tfrecords", tmp_path, tmp_path / "out")
        for cut in random.integers(1, len(whole), 40).tolist():
            if compressed or cut not in frames:
                path.write_bytes(whole[:cut])
                with pytest.raises(DataError, match=r"1_train\.tfrecords: record \d"):
                    list(read_records(path, 10**6))

    def test_what_comes_before_can_be_kept(
        self, records: dict[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        path = tmp_path / "1_train.tfrecords"
        write_records(path, list(records.values()))
        data = bytearray(path.read_bytes())
        data[len(framed(records["chair0"])) + 5000] ^= 1  # within record 1
        path.write_bytes(bytes(data[:-100]))  # and record 3 is cut
        run_command("tfrecords", path, tmp_path / "out", "skip_bad=true", "image_size=64")
        said = capsys.readouterr().err
        assert "record 1: the record doesn't match its checksum" in said
        assert "record 3: the file is cut short" in said
        assert sorted(read_all(tmp_path / "out")) == ["1/chair0", "1/chair2"]

    def test_lengths_are_bounded_before_anything_is_read(self, tmp_path: Path):
        path = tmp_path / "1_train.tfrecords"
        length = (2**62).to_bytes(8, "little")
        path.write_bytes(length + masked_crc32c(length).to_bytes(4, "little"))
        with pytest.raises(DataError, match="more than the 268435456 allowed; raise max_megabytes"):
            run_import("tfrecords", tmp_path, tmp_path / "out")
        path.write_bytes(gzip.compress(framed(bytes(3 * 2**20))))
        with pytest.raises(DataError, match="3145728 bytes, more than the 1048576 allowed"):
            run_import("tfrecords", tmp_path, tmp_path / "out", max_megabytes=1)

    def test_a_plain_record_that_begins_like_gzip(self, tmp_path: Path):
        record = bytes(0x088B1F)
        write_records(tmp_path / "x", [record])
        assert (tmp_path / "x").read_bytes().startswith(b"\x1f\x8b\x08\x00")
        assert [data for data, _ in read_records(tmp_path / "x", 10**6)] == [record]

    def test_an_empty_file(self, tmp_path: Path):
        (tmp_path / "1_train.tfrecords").write_bytes(b"")
        with pytest.raises(DataError, match="no record can be used"):
            run_import("tfrecords", tmp_path, tmp_path / "out")


class TestChecksum:
    @pytest.mark.parametrize(
        ("data", "value"),
        [  # RFC 3720, and the usual check value
            (b"", 0),
            (b"123456789", 0xE3069283),
            (bytes(32), 0x8A9136AA),
            (b"\xff" * 32, 0x62A8AB43),
            (bytes(range(32)), 0x46DD794E),
            (bytes(range(31, -1, -1)), 0x113FDB5C),
        ],
    )
    def test_known_values(self, data: bytes, value: int):
        assert crc32c(data) == value

    @given(st.integers(0, 9000), st.integers(0, 2**32 - 1))
    def test_as_the_definition_byte_by_byte(self, size: int, seed: int):
        data = np.random.default_rng(seed).bytes(size)
        state = 0xFFFFFFFF
        table = [crc32c_of_byte(value) for value in range(256)]
        for byte in data:
            state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
        assert crc32c(data) == state ^ 0xFFFFFFFF


def crc32c_of_byte(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value
