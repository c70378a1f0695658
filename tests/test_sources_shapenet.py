"""ShapeNetCore's layouts, with generated files: the same synsets and files beside as in the releases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import trimesh
from toy import call
from view_layouts import read_all, run_import

from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources.mesh_folders import list_meshes
from drwr_dist.sources.shapenet import SYNSETS

SMALL = {"views": 2, "image_size": 32, "ground_truth_voxel": 0.05}
MODELS = {"02691156": ["a1", "a2", "a3"], "03001627": ["c1", "c2"]}


def write_model(folder: Path, name: str, seed: int) -> None:
    """A slab and a post on it, green by its material; +Y up: the post stands on top."""
    random = np.random.default_rng(seed)
    slab, post = trimesh.creation.box((1, 0.2, random.uniform(0.4, 0.8))), trimesh.creation.box((0.2, 0.6, 0.2))
    post.apply_translation((0.3, 0.4, 0))
    both = trimesh.util.concatenate([slab, post])
    lines = [f"mtllib {name}.mtl", "usemtl green"]
    lines += [f"v {x} {y} {z}" for x, y, z in both.vertices] + [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in both.faces]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.obj").write_text("\n".join(lines))
    (folder / f"{name}.mtl").write_text("newmtl green\nKd 0 1 0\nmap_Kd ../images/texture0.jpg\n")


def write_release(root: Path, version: int) -> Path:
    for synset, names in MODELS.items():
        for seed, name in enumerate(names):
            folder = root / synset / name
            if version == 1:
                write_model(folder, "model", seed)
                (folder / "images").mkdir()
                (folder / "images/texture0.jpg").write_bytes(b"not read")
            else:
                write_model(folder / "models", "model_normalized", seed)
                (folder / "models/model_normalized.json").write_text("{}")
                (folder / "models/model_normalized.surface.binvox").write_bytes(b"#binvox 1")
                (folder / "screenshots").mkdir()
        (root / f"{synset}.csv").write_text("fullId,wnsynset\n")
    (root / "taxonomy.json").write_text(json.dumps([{"synsetId": "02691156"}]))
    (root / "README.txt").write_text("ShapeNetCore")
    return root


def test_the_table():
    assert len(SYNSETS) == 57 and len(set(SYNSETS.values())) == 57
    assert all(len(synset) == 8 and synset.isdigit() for synset in SYNSETS)
    assert SYNSETS["02691156"] == "airplane" and SYNSETS["04530566"] == "watercraft"


@pytest.mark.parametrize("version", [1, 2])
def test_import(tmp_path: Path, version: int):
    root = write_release(tmp_path / "ShapeNetCore", version)
    done = call(
        "shards import", "source=meshes", f"input={root}", f"output={tmp_path / 'out'}", "workers=1",
        *(f"{name}={value}" for name, value in SMALL.items()),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert verify_dataset(str(tmp_path / "out")) == []
    found = read_all(tmp_path / "out")
    assert sorted(found) == ["airplane/a1", "airplane/a2", "airplane/a3", "chair/c1", "chair/c2"]
    for _, sample in found.values():
        assert sample.meta["source"] == f"ShapeNetCore v{version}"
        assert sample.meta["licence"] == "ShapeNet terms of use"
        assert np.array_equal(sample.meta["similarity"]["rotation"], np.eye(3))  # +Y stays up
        inside = sample.images[sample.masks == 255].astype(int)
        assert inside[:, 1].min() > 20 and not inside[:, [0, 2]].any()


@pytest.mark.parametrize("version", [1, 2])
def test_one_synset(tmp_path: Path, version: int):
    root = write_release(tmp_path / "in", version)
    run_import("meshes", root / "03001627", tmp_path / "one", **{**SMALL, "image_size": 32})
    run_import("meshes", root, tmp_path / "chosen", categories=["03001627"], **{**SMALL, "image_size": 32})
    run_import("meshes", root, tmp_path / "named", categories=["chair"], **{**SMALL, "image_size": 32})
    images = [read_all(tmp_path / name)["chair/c1"][1].images for name in ("one", "chosen", "named")]
    assert sorted(read_all(tmp_path / "one")) == ["chair/c1", "chair/c2"]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_a_model_without_mesh_is_reported(tmp_path: Path):
    root = write_release(tmp_path / "in", 2)
    (root / "02691156/a2/models/model_normalized.obj").unlink()
    done = call(
        "shards import", "source=meshes", f"input={root}", f"output={tmp_path / 'out'}", "workers=1",
        *(f"{name}={value}" for name, value in SMALL.items()),
    )  # fmt: skip
    assert done.returncode == 0 and len(read_all(tmp_path / "out")) == 4
    assert f"skipped airplane/a2: {root}/02691156/a2: neither model.obj nor" in done.stderr


def test_synsets_are_names_not_octal_numbers(tmp_path: Path):
    """03001627 has octal digits alone; YAML 1.1 would take it for 787351."""
    root = write_release(tmp_path / "in", 1)
    arguments = [
        "source=meshes",
        f"input={root}",
        f"output={tmp_path / 'out'}",
        "workers=1",
        "views=1",
        "image_size=32",
    ]
    done = call("shards import", *arguments, "categories=[03001627]")
    assert done.returncode == 0, done.stderr
    assert sorted(read_all(tmp_path / "out")) == ["chair/c1", "chair/c2"]


def test_a_category_of_a_plain_folder_may_be_called_so(tmp_path: Path):
    """<category>/model.obj is the object `model`, unless the folder above is a synset's."""
    write_model(tmp_path / "in/chair", "model", 0)
    assert list(list_meshes(str(tmp_path / "in"))[0]) == ["chair/model"]


def test_a_synset_and_a_folder_of_its_name(tmp_path: Path):
    write_model(tmp_path / "in/03001627/c1", "model", 0)
    write_model(tmp_path / "in/chair", "c1", 1)
    with pytest.raises(DataError, match=r"both become chair/c1; rename one"):
        list_meshes(str(tmp_path / "in"))
    with pytest.raises(UsageError, match="no category folder 'sofa'; with meshes there are chair"):
        list_meshes(str(tmp_path / "in"), ["sofa"])
