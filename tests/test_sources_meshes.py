from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.spatial
import trimesh
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from toy import call, make_meshes
from view_layouts import read_all
from webdataset.tariterators import base_plus_ext

from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.sample import decode_sample, split_members
from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError
from drwr_dist.shards import ImportOptions, import_dataset
from drwr_dist.sources.mesh_folders import list_meshes, object_id

SMALL = {"views": 2, "image_size": 32, "supersample": 2, "ground_truth_voxel": 0.05, "workers": 1}


def build(folder: Path, output: Path, **changes: object):
    from rich.console import Console

    options = ImportOptions(source="meshes", input=str(folder), output=str(output), **{**SMALL, **changes})  # type: ignore[arg-type]
    return import_dataset(options, Console(quiet=True))


@pytest.fixture
def meshes(tmp_path: Path) -> Path:
    make_meshes(tmp_path / "meshes", {"brick": 8, "slab": 3})
    return tmp_path / "meshes"


def test_import(meshes: Path, tmp_path: Path):
    index = build(meshes, tmp_path / "out", name="toys")
    assert index.name == "toys"
    assert index.categories == {
        "brick": {"train": 5, "val": 1, "test": 2},
        "slab": {"train": 2, "val": 0, "test": 1},
    }
    assert verify_dataset(index.root) == []
    for key, (_, sample) in read_all(tmp_path / "out").items():
        category, name = key.split("/")
        assert sample.meta["category"] == category and sample.meta["object_id"] == name
        assert sample.masks.shape == (2, 32, 32)
        assert sample.points is not None
        # The stored similarity takes the file's frame into the unit cube: exactly the ground truth's.
        similarity = sample.meta["similarity"]
        original = trimesh.load(meshes / f"{key}.ply")
        corners = (
            similarity["scale"] * original.vertices @ np.array(similarity["rotation"]).T + similarity["translation"]
        )
        assert np.isclose(np.linalg.norm(np.ptp(corners, axis=0)), 1)
        assert np.all(sample.points >= corners.min(axis=0) - 1e-3) and np.all(
            sample.points <= corners.max(axis=0) + 1e-3
        )


def test_bytes_do_not_depend_on_the_number_of_workers(meshes: Path, tmp_path: Path):
    for workers in (1, 3):
        build(meshes, tmp_path / str(workers), name="same", workers=workers)
    one, three = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("1", "3"))
    assert one == three


def test_the_seed_changes_cameras_and_splits(meshes: Path, tmp_path: Path):
    build(meshes, tmp_path / "a", seed=0)
    build(meshes, tmp_path / "b", seed=1)
    one, other = read_all(tmp_path / "a"), read_all(tmp_path / "b")
    assert one.keys() == other.keys()
    assert all(not np.allclose(one[key][1].world_to_camera, other[key][1].world_to_camera) for key in one)
    assert [one[key][0] for key in sorted(one)] != [other[key][0] for key in sorted(one)]


def test_an_object_does_not_depend_on_its_neighbours(meshes: Path, tmp_path: Path):
    build(meshes, tmp_path / "all")
    build(meshes, tmp_path / "slabs", categories=["slab"])
    everything, slabs = read_all(tmp_path / "all"), read_all(tmp_path / "slabs")
    assert sorted(slabs) == ["slab/box00", "slab/box01", "slab/box02"]
    for key, (split, sample) in slabs.items():
        assert everything[key][0] == split
        assert np.array_equal(everything[key][1].images, sample.images)
        assert np.array_equal(everything[key][1].points, sample.points)


def test_exact_copies_share_a_group(meshes: Path, tmp_path: Path):
    copy = trimesh.load(meshes / "brick/box00.ply")
    copy.apply_scale(3.0)
    copy.apply_translation((1, 2, 3))
    for number in range(6):
        copy.export(meshes / f"brick/copy{number}.obj")
    build(meshes, tmp_path / "out")
    found = read_all(tmp_path / "out")
    copies = [found[key] for key in ("brick/box00", *(f"brick/copy{number}" for number in range(6)))]
    assert len({(split, sample.meta["near_duplicate_group"]) for split, sample in copies}) == 1
    assert verify_dataset(str(tmp_path / "out")) == []


def test_manifest_licences_and_groups(meshes: Path, tmp_path: Path):
    lines = ["category,name,license,near_duplicate_group,source_package,version,path_in_package,author"]
    for category, count in (("brick", 8), ("slab", 3)):
        for number in range(count):
            licence = "GPL-2+" if number == 0 else "CC0-1.0"
            lines.append(f"{category},box{number:02d},{licence},{number // 2},pack,1.8,a/b{number}.obj,Ann")
    (tmp_path / "m.csv").write_text("\n".join(lines))
    index = build(meshes, tmp_path / "out", manifest=str(tmp_path / "m.csv"), licences=["CC0-1.0", "CC-BY-3.0"])
    assert index.licences == {"CC0-1.0": 9}
    assert index.sources == {"pack 1.8": 9}
    found = read_all(tmp_path / "out")
    assert "brick/box00" not in found
    assert found["brick/box02"][0] == found["brick/box03"][0]
    meta = found["brick/box03"][1].meta
    assert (meta["licence"], meta["author"], meta["source_path"]) == ("CC0-1.0", "Ann", "a/b3.obj")
    with pytest.raises(UsageError, match=r"no mesh of .* has one of them"):
        build(meshes, tmp_path / "none", manifest=str(tmp_path / "m.csv"), licences=["MIT"])
    (tmp_path / "short.csv").write_text("\n".join(lines[:3]))
    with pytest.raises(UsageError, match="brick,box02 is not listed"):
        build(meshes, tmp_path / "none", manifest=str(tmp_path / "short.csv"))
    with pytest.raises(UsageError, match="licences=… needs manifest"):
        build(meshes, tmp_path / "none", licences=["CC0-1.0"])


def test_splits_from_a_file(meshes: Path, tmp_path: Path):
    table = {f"brick/box{number:02d}": "val" if number < 4 else "test" for number in range(8)}
    table |= {f"slab/box{number:02d}": "train" for number in range(3)}
    (tmp_path / "splits.json").write_text(json.dumps(table))
    build(meshes, tmp_path / "out", splits=str(tmp_path / "splits.json"))
    assert {key: split for key, (split, _) in read_all(tmp_path / "out").items()} == table


def test_depth(meshes: Path, tmp_path: Path):
    """Back-projected by its camera, depth gives points of the surface that the ground truth was sampled from."""
    build(meshes, tmp_path / "out", depth=True, image_size=64, ground_truth_voxel=0.01)
    assert verify_dataset(str(tmp_path / "out")) == []
    index = load_index(tmp_path / "out")
    for _, position, key in index.select("train")[:3]:
        members = split_members(read_sample(index, 0, position), key=key)
        sample = decode_sample(members, key=key, shard="s", with_points=True)
        levels = cv2.imdecode(np.frombuffer(members["01.depth.png"], np.uint8), cv2.IMREAD_UNCHANGED)
        assert levels.dtype == np.uint16 and sample.meta["depth_step"] == pytest.approx(3 / 65535)
        rows, columns = np.nonzero(sample.masks[1] == 255)
        z = levels[rows, columns] * sample.meta["depth_step"]
        x, y = ((columns + 0.5) / 64 - 0.5) / 1.875 * z, ((rows + 0.5) / 64 - 0.5) / 1.875 * z
        matrix = sample.world_to_camera[1]
        surface = (np.stack([x, y, z], axis=1) - matrix[:3, 3]) @ matrix[:3, :3]
        assert sample.points is not None
        distance, _ = scipy.spatial.cKDTree(sample.points).query(surface)
        assert np.mean(distance < 0.015) > 0.9


def test_compression_changes_no_pixel(meshes: Path, tmp_path: Path):
    for compression in ("auto", "quick", "small"):
        build(meshes, tmp_path / compression, compression=compression, categories=["slab"], name="same")
    quick, small = read_all(tmp_path / "quick"), read_all(tmp_path / "small")
    assert all(np.array_equal(quick[key][1].images, small[key][1].images) for key in quick)
    first = [(tmp_path / name / "train-000000.tar").read_bytes() for name in ("auto", "quick", "small")]
    assert first[0] == first[1] != first[2]


class TestBadMeshes:
    def test_fail_by_default_and_name_the_file(self, meshes: Path, tmp_path: Path):
        (meshes / "brick/broken.ply").write_bytes(b"ply rot")
        with pytest.raises(DataError, match=r"brick/broken\.ply: not a readable \.ply mesh"):
            build(meshes, tmp_path / "out")
        assert not (tmp_path / "out/index.json").exists()

    def test_can_be_skipped_and_are_counted(self, meshes: Path, tmp_path: Path):
        (meshes / "brick/broken.ply").write_bytes(b"ply rot")
        (meshes / "slab/flat.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
        done = call(
            "shards import", "source=meshes", f"input={meshes}", f"output={tmp_path / 'out'}", "skip_bad=true",
            *(f"{name}={value}" for name, value in SMALL.items()),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "skipped brick/broken: " in done.stderr and "skipped slab/flat: " in done.stderr
        assert len(read_all(tmp_path / "out")) == 11

    def test_without_area(self, tmp_path: Path):
        (tmp_path / "in/a").mkdir(parents=True)
        (tmp_path / "in/a/flat.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
        with pytest.raises(DataError, match=r"a/flat"):
            build(tmp_path / "in", tmp_path / "out")

    def test_too_many_faces(self, meshes: Path, tmp_path: Path):
        with pytest.raises(DataError, match=r"box00\.ply: 24 faces, more than the 10 allowed"):
            build(meshes, tmp_path / "out", max_faces=10)


class TestNames:
    @given(st.text(min_size=1, max_size=200))
    def test_object_ids_group_rightly(self, name: str):
        clean = object_id(name)
        assert (
            0 < len(clean) <= 64
            and clean.isascii()
            and not set(clean) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
        )
        assert base_plus_ext(f"cat/{clean}.00.image.png") == (f"cat/{clean}", "00.image.png")
        assert object_id(clean) == clean

    def test_odd_file_names(self, tmp_path: Path):
        (tmp_path / "in/my chairs").mkdir(parents=True)
        names = ["Stuhl Nr. 5 (größer)", "a.b.c", "__x__"]
        for size, name in enumerate(names, start=1):
            trimesh.creation.box((1, 1, size)).export(tmp_path / "in/my chairs" / f"{name}.ply")
        index = build(tmp_path / "in", tmp_path / "out")
        urls = [str(tmp_path / "out" / shard.url) for shard in index.shards]
        keys = sorted(sample["__key__"] for sample in webdataset.WebDataset(urls, shardshuffle=False))
        assert keys == ["my_chairs/Stuhl_Nr_5_gr_er", "my_chairs/a_b_c", "my_chairs/x"]
        places = {sample.meta["source_path"] for _, sample in read_all(tmp_path / "out").values()}
        assert places == {f"my chairs/{name}.ply" for name in names}

    def test_names_that_become_the_same_are_refused(self, tmp_path: Path):
        (tmp_path / "a").mkdir()
        for name in ("x y", "x.y"):
            trimesh.creation.box().export(tmp_path / "a" / f"{name}.ply")
        with pytest.raises(DataError, match="both become a/x_y"):
            list_meshes(str(tmp_path))

    def test_long_names_stay_apart(self):
        assert object_id("x" * 100 + "1") != object_id("x" * 100 + "2")


class TestFolders:
    def test_archives_are_named(self, tmp_path: Path):
        (tmp_path / "cars").mkdir()
        trimesh.creation.box().export(tmp_path / "cars/a.ply")
        (tmp_path / "cars/b.zip").write_bytes(b"PK")
        found, unused = list_meshes(str(tmp_path))
        assert list(found) == ["cars/a"]
        assert unused == [("cars/b", f"{tmp_path / 'cars/b.zip'}: an archive is not looked into; unpack it")]

    def test_none(self, tmp_path: Path):
        with pytest.raises(UsageError, match="no such folder"):
            list_meshes(str(tmp_path / "nowhere"))
        (tmp_path / "empty").mkdir()
        (tmp_path / "empty/readme.txt").write_text("x")
        with pytest.raises(UsageError, match="no meshes; expected"):
            list_meshes(str(tmp_path))

    def test_unknown_category(self, meshes: Path):
        with pytest.raises(UsageError, match="no category folder 'stool'; with meshes there are brick, slab"):
            list_meshes(str(meshes), ["stool"])

    def test_the_folder_itself_may_be_the_category(self, meshes: Path):
        found, _ = list_meshes(str(meshes / "brick"))
        assert sorted(found) == sorted(f"brick/{path.stem}" for path in (meshes / "brick").iterdir())
        assert list(list_meshes(str(meshes / "brick"), ["brick"])[0]) == list(found)
        with pytest.raises(UsageError, match=r"no category folder 'bric'; did you mean brick\?"):
            list_meshes(str(meshes / "brick"), ["bric"])

    def test_meshes_in_the_folder_and_below_it(self, meshes: Path):
        (meshes / "stray.ply").write_bytes(next((meshes / "slab").iterdir()).read_bytes())
        with pytest.raises(UsageError, match=r"stray\.ply lies in it, but brick/ has meshes too"):
            list_meshes(str(meshes))


def test_an_axis_that_points_up(meshes: Path, tmp_path: Path):
    """Meshes that stand along +z, imported with up=+z, are the bytes of the same meshes along +y, but for meta.json."""
    for path in sorted(meshes.rglob("*.ply")):
        mesh = trimesh.load(path)
        x, y, z = np.array(mesh.vertices).T
        mesh.vertices = np.stack((x, -z, y), axis=-1)
        (tmp_path / "lying" / path.parent.name).mkdir(parents=True, exist_ok=True)
        mesh.export(tmp_path / "lying" / path.relative_to(meshes))
    build(meshes, tmp_path / "upright", name="toys", splits=None)
    build(tmp_path / "lying", tmp_path / "turned", name="toys", up="+z")
    upright, turned = (read_all(tmp_path / name) for name in ("upright", "turned"))
    assert upright.keys() == turned.keys()
    for key, (_, sample) in upright.items():
        other = turned[key][1]
        assert np.array_equal(sample.masks, other.masks) and np.array_equal(sample.images, other.images)
        assert sample.points == pytest.approx(other.points, abs=1e-3)
    with pytest.raises(UsageError, match=r"up=z: choose one of \+x, -x, \+y, -y, \+z, -z"):
        build(meshes, tmp_path / "other", up="z")
