from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image
from toy import call
from view_layouts import Rendered, contents, read_all, render_blender, run_import, share_on_masks, write_dpc

from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.sample import split_members
from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources.mat import read_mat
from drwr_dist.sources.pictures import resample
from drwr_dist.sources.released_splits import read_lists

KEYS = [*(f"03001627/chair{number}" for number in range(4)), "02691156/plane0"]


@pytest.fixture(scope="module")
def models() -> dict[str, Rendered]:
    return {key: render_blender(seed) for seed, key in enumerate(KEYS)}


@pytest.fixture
def root(models: dict[str, Rendered], tmp_path: Path) -> Path:
    write_dpc(tmp_path / "data", models)
    (tmp_path / "data/splits").mkdir()
    lists = {"train": ["chair0", "chair1"], "val": ["chair2"], "test": ["chair3"]}
    for split, names in lists.items():
        (tmp_path / f"data/splits/03001627_{split}.txt").write_text("\n".join(names) + "\n")
    (tmp_path / "data/splits/02691156_train.txt").write_text("plane0")
    return tmp_path / "data"


class TestImport:
    @pytest.mark.parametrize("camera", ["position", "extrinsic"])
    def test_ground_truth_projects_onto_the_masks(
        self, root: Path, models: dict[str, Rendered], tmp_path: Path, camera: str
    ):
        done = call(
            "shards import", "source=dpc", f"input={root}", f"output={tmp_path / 'out'}", f"camera={camera}",
            "image_size=64", "workers=1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert verify_dataset(str(tmp_path / "out")) == []
        found = read_all(tmp_path / "out")
        assert sorted(found) == sorted(KEYS)
        for key, (_, sample) in found.items():
            assert sample.points is not None
            assert share_on_masks(sample.points, sample) >= 0.999
            # The stored similarity takes the source's ground truth to the points.
            turned = models[key].points @ np.array(sample.meta["similarity"]["rotation"]).T
            assert np.allclose(turned, sample.points, atol=3e-4)
            # A camera of the other path does not fit: the test would notice.
            assert share_on_masks(sample.points * (-1, 1, -1), sample) < 0.95

    def test_pixels_are_kept_as_they_are(self, root: Path, models: dict[str, Rendered], tmp_path: Path):
        index = run_import("dpc", root, tmp_path / "out")
        assert (index.views, index.image_size, index.focal_length) == (5, 64, 1.875)
        for key, (_, sample) in read_all(tmp_path / "out").items():
            assert np.array_equal(sample.images, models[key].images)
            assert np.array_equal(sample.masks, models[key].masks)
            assert sample.points is not None and np.allclose(sample.points, models[key].points, atol=3e-4)

    def test_depth_is_kept_as_it_is(self, root: Path, tmp_path: Path):
        path = root / "render/03001627/chair0/depth_3.png"
        levels = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
        Image.fromarray(levels).save(path)
        run_import("dpc", root, tmp_path / "out", depth=True)
        assert verify_dataset(str(tmp_path / "out")) == []
        index = load_index(tmp_path / "out")
        number, position, key = next(place for place in index.select("train") if place[2] == "03001627/chair0")
        members = split_members(read_sample(index, number, position), key=key)
        stored = cv2.imdecode(np.frombuffer(members["03.depth.png"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(stored, levels) and json.loads(members["meta.json"])["depth_step"] is None
        run_import("dpc", root, tmp_path / "none")
        assert not any("depth" in name for name in split_members(read_sample(load_index(tmp_path / "none"), 0, 0)))

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [
            (lambda path: path.unlink(), "no such file"),
            (lambda path: path.write_bytes(b"rot"), "not an image"),
            (lambda path: Image.new("RGB", (64, 64), (1, 2, 3)).save(path), "not a grey image of 8 or 16 bits"),
            (lambda path: Image.new("L", (64, 32)).save(path), "64 × 32 pixels; depth is square"),
        ],
    )
    def test_bad_depth(self, root: Path, tmp_path: Path, damage: Callable[[Path], object], reason: str):
        damage(root / "render/03001627/chair0/depth_3.png")
        with pytest.raises(DataError, match=rf"03001627/chair0/depth_3\.png: {reason}"):
            run_import("dpc", root, tmp_path / "out", depth=True)
        run_import("dpc", root, tmp_path / "out")

    def test_the_authors_splits(self, root: Path, tmp_path: Path):
        run_import("dpc", root, tmp_path / "out")
        splits = {key: split for key, (split, _) in read_all(tmp_path / "out").items()}
        assert splits == dict(zip(KEYS, ["train", "train", "val", "test", "train"], strict=True))

    def test_without_lists_splits_are_drawn(self, root: Path, tmp_path: Path):
        shutil.move(root / "splits", tmp_path / "lists")
        run_import("dpc", root, tmp_path / "drawn", categories=["03001627"])
        assert len(read_all(tmp_path / "drawn")) == 4
        run_import("dpc", root, tmp_path / "named", splits=str(tmp_path / "lists"))
        assert read_all(tmp_path / "named")["03001627/chair3"][0] == "test"

    def test_bytes_do_not_depend_on_the_number_of_workers(self, root: Path, tmp_path: Path):
        for workers in (1, 2):
            run_import("dpc", root, tmp_path / str(workers), workers=workers, name="same", views=3)
        assert contents(tmp_path / "1") == contents(tmp_path / "2")

    def test_views_are_chosen_evenly_and_can_run_out(self, root: Path, tmp_path: Path):
        index = run_import("dpc", root, tmp_path / "out", views=2)
        assert index.views == 2
        with pytest.raises(DataError, match="5 views, 6 asked for"):
            run_import("dpc", root, tmp_path / "more", views=6)
        for path in (root / "render/02691156/plane0").glob("*_4.*"):
            path.unlink()
        assert run_import("dpc", root, tmp_path / "all").views == 5
        assert {len(sample.masks) for _, sample in read_all(tmp_path / "all").values()} == {4, 5}
        assert verify_dataset(str(tmp_path / "all")) == []

    def test_other_sizes_are_resampled(self, root: Path, tmp_path: Path):
        run_import("dpc", root, tmp_path / "out", image_size=32)
        for _, sample in read_all(tmp_path / "out").values():
            assert sample.masks.shape[1:] == (32, 32)
            assert sample.points is not None and share_on_masks(sample.points, sample) >= 0.999


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "data", "reason"),
        [
            ("camera_0.mat", b"rot" * 100, "not a readable MATLAB file"),
            ("camera_0.mat", None, r"camera_0\.mat: no such file"),
            ("camera_0.mat", {"extrinsic": np.eye(4)}, "no variable 'pos'; there are extrinsic"),
            ("camera_0.mat", {"pos": np.zeros(3)}, "away from the origin"),
            ("camera_0.mat", {"pos": np.full(3, np.nan)}, "pos is not finite"),
            ("camera_0.mat", {"pos": np.ones(4)}, r"pos is \[4\], expected \[3\]"),
            ("camera_0.mat", {"pos": "text"}, "pos is of class char"),
            ("camera_0.mat", {"pos": {"x": 1.0}}, "pos is of class struct"),
            ("camera_0.mat", {"pos": np.array([{}, 1], object)}, "pos is of class cell"),
            ("camera_0.mat", {"pos": np.zeros((1000, 1000))}, "1000000 values, more than"),
            ("render_0.png", b"rot", "not an image that can be read"),
        ],
    )
    def test_is_named(self, root: Path, tmp_path: Path, name: str, data: object, reason: str):
        place = root / "render/03001627/chair0" / name
        place.unlink()
        if isinstance(data, dict):
            scipy.io.savemat(place, data)
        elif isinstance(data, bytes):
            place.write_bytes(data)
        with pytest.raises(DataError, match=reason) as caught:
            run_import("dpc", root, tmp_path / "out")
        assert str(place) in str(caught.value)
        assert not (tmp_path / "out/index.json").exists()
        run_import("dpc", root, tmp_path / "out", skip_bad=True)
        assert len(read_all(tmp_path / "out")) == 4

    def test_an_image_without_alpha_or_not_square(self, root: Path, tmp_path: Path):
        place = root / "render/03001627/chair0/render_0.png"
        Image.new("RGB", (64, 64)).save(place)
        with pytest.raises(DataError, match="no alpha channel"):
            run_import("dpc", root, tmp_path / "out")
        Image.new("RGBA", (64, 32)).save(place)
        with pytest.raises(DataError, match="renders are square"):
            run_import("dpc", root, tmp_path / "out")

    def test_a_camera_of_another_view_is_found_by_the_ground_truth(self, root: Path, tmp_path: Path):
        folder = root / "render/03001627/chair0"
        shutil.copy(folder / "camera_1.mat", folder / "camera_0.mat")
        with pytest.raises(DataError, match="camera and mask don't belong together"):
            run_import("dpc", root, tmp_path / "out")

    def test_listed_models_must_be_rendered(self, root: Path, tmp_path: Path):
        (root / "splits/02691156_test.txt").write_text("missing1\n")
        with pytest.raises(DataError, match=r"missing1: no render_<n>\.png"):
            run_import("dpc", root, tmp_path / "out")
        run_import("dpc", root, tmp_path / "out", skip_bad=True)
        (root / "splits/02691156_test.txt").write_text("../../../etc\n")
        with pytest.raises(DataError, match=r"'\.\./\.\./\.\./etc' is not a model id"):
            run_import("dpc", root, tmp_path / "bad", skip_bad=True)

    def test_usage(self, root: Path, tmp_path: Path):
        with pytest.raises(UsageError, match="no folder render/<synset>"):
            run_import("dpc", tmp_path, tmp_path / "out")
        with pytest.raises(UsageError, match="no category 'x'; there are 02691156, 03001627"):
            run_import("dpc", root, tmp_path / "out", categories=["x"])
        with pytest.raises(UsageError, match="up=\\+y: means nothing to source=dpc, only to meshes, posed"):
            run_import("dpc", root, tmp_path / "out", up="+y")
        with pytest.raises(UsageError, match="camera=matrix: choose one of position, extrinsic"):
            run_import("dpc", root, tmp_path / "out", camera="matrix")


class TestMat:
    def test_objects_and_functions_are_never_built(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        import scipy.io as module

        scipy.io.savemat(tmp_path / "a.mat", {"points": np.array([[{"f": 1}]], object)})
        monkeypatch.setattr(module, "loadmat", lambda *_, **__: pytest.fail("loaded"))
        with pytest.raises(DataError, match="class cell"):
            read_mat(tmp_path / "a.mat", "points")

    def test_version_7_3_is_refused_with_the_way_out(self, tmp_path: Path):
        header = b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM"
        (tmp_path / "a.mat").write_bytes(header + b"\x89HDF\r\n\x1a\n" + bytes(600))
        with pytest.raises(DataError, match="save it with -v7"):
            read_mat(tmp_path / "a.mat", "points")

    @pytest.mark.parametrize("compressed", [False, True])
    def test_both_kinds_of_level_5(self, tmp_path: Path, compressed: bool):
        points = np.arange(30, dtype=np.float32).reshape(10, 3)
        scipy.io.savemat(tmp_path / "a.mat", {"points": points, "other": np.eye(2)}, do_compression=compressed)
        assert np.array_equal(read_mat(tmp_path / "a.mat", "points"), points)
        data = (tmp_path / "a.mat").read_bytes()
        for cut in (0, 10, 130, len(data) - 40):
            (tmp_path / "cut.mat").write_bytes(data[:cut])
            with pytest.raises(DataError, match=r"cut\.mat"):
                read_mat(tmp_path / "cut.mat", "other" if cut > 200 else "points")


def torch_table(lists: dict[str, list[str]]) -> str:
    lines = ["3", "1", str(len(lists))]
    for number, (split, names) in enumerate(lists.items()):
        lines += ["2", str(len(split)), split, "3", str(number + 2), str(len(names))]
        for place, name in enumerate(names, start=1):
            lines += ["1", str(place), "2", str(len(name)), name]
    return "\n".join(lines) + "\n"


class TestSplitLists:
    LISTS = {"test": ["c"], "train": ["a", "b"], "val": []}  # noqa: RUF012

    def test_both_forms_say_the_same(self, tmp_path: Path):
        (tmp_path / "1.file").write_text(torch_table(self.LISTS))
        for split, names in self.LISTS.items():
            (tmp_path / f"2_{split}.txt").write_text("\n".join(names))
        expected = {"a": "train", "b": "train", "c": "test"}
        assert read_lists([tmp_path / "none", tmp_path], "1") == read_lists([tmp_path], "2") == expected
        assert read_lists([tmp_path], "3") is None

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            (torch_table(LISTS)[:-20], "not a split table"),
            ("cos\nsystem\n(S'true'\ntR.", "not a split table"),  # a pickle is text too
            (torch_table({"trian": ["a"]}), "split 'trian'"),
            (torch_table({"train": ["a"], "val": ["a"]}), "a is both in train and in val"),
            (torch_table({"train": ["../a"]}), "is not a model id"),
            ("3\n1\n99999999999\n", "it ends too early"),
        ],
    )
    def test_damage(self, tmp_path: Path, text: str, reason: str):
        (tmp_path / "1.file").write_text(text)
        with pytest.raises(DataError, match=reason):
            read_lists([tmp_path], "1")


def test_resampling_does_not_mix_in_the_background():
    image = np.full((8, 8, 3), 200, np.uint8)
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:, 3:] = 255
    image[alpha == 0] = 7
    small, mask = resample(image, alpha, 4)
    assert (small[mask > 0] == 200).all() and (small[mask == 0] == 0).all()
    assert mask[0].tolist() == [0, 128, 255, 255]
    same, kept = resample(image, alpha, 8)
    assert np.array_equal(kept, alpha) and (same[alpha == 0] == 0).all() and (same[alpha > 0] == 200).all()
