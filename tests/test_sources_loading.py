from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import trimesh

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import GREY
from drwr_dist.sources.loading import MESH_SUFFIXES, MeshLimits, load_mesh


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_every_format(tmp_path: Path, suffix: str):
    path = tmp_path / f"box{suffix}"
    trimesh.creation.box((1, 2, 3)).export(path)
    mesh = load_mesh(path)
    assert len(mesh.faces) == 12
    assert np.allclose(np.ptp(mesh.vertices, axis=0), (1, 2, 3))


def test_suffixes_in_capitals(tmp_path: Path):
    trimesh.creation.box().export(tmp_path / "box.ply")
    (tmp_path / "box.ply").rename(tmp_path / "box.PLY")
    assert len(load_mesh(tmp_path / "box.PLY").faces) == 12


def test_scenes_keep_their_transforms_and_colours(tmp_path: Path):
    red, plain = trimesh.creation.box(), trimesh.creation.box()
    red.visual = trimesh.visual.TextureVisuals(
        material=trimesh.visual.material.PBRMaterial(baseColorFactor=[255, 0, 0, 255])
    )
    scene = trimesh.Scene()
    scene.add_geometry(red, transform=trimesh.transformations.translation_matrix((10, 0, 0)))
    scene.add_geometry(plain)
    scene.export(tmp_path / "scene.glb")
    mesh = load_mesh(tmp_path / "scene.glb")
    assert np.allclose(np.ptp(mesh.vertices, axis=0), (11, 1, 1))
    assert mesh.colours is not None
    assert {tuple(colour) for colour in mesh.colours.tolist()} == {(255, 0, 0), GREY}


def test_vertex_colours(tmp_path: Path):
    box = trimesh.creation.box()
    box.visual.vertex_colors = [0, 200, 0, 255]
    box.export(tmp_path / "box.ply")
    mesh = load_mesh(tmp_path / "box.ply")
    assert mesh.colours is not None and (mesh.colours == (0, 200, 0)).all()


def test_a_mesh_without_material_has_no_colours(tmp_path: Path):
    for suffix in (".ply", ".glb", ".obj"):
        trimesh.creation.box().export(tmp_path / f"box{suffix}")
        assert load_mesh(tmp_path / f"box{suffix}").colours is None


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"nonsense \x00\xff" * 50, b"ply\nformat ascii 1.0\n", b"v 1 2"])
def test_rubbish_is_a_data_error_that_names_the_file(tmp_path: Path, suffix: str, content: bytes):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"^{path}: "):
        load_mesh(path)


@pytest.mark.parametrize("suffix", [".ply", ".stl", ".glb", ".off"])
def test_truncated_files(tmp_path: Path, suffix: str):
    path = tmp_path / f"cut{suffix}"
    trimesh.creation.icosphere().export(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=f"^{path}: "):
        load_mesh(path)


def test_limits(tmp_path: Path):
    path = tmp_path / "ball.ply"
    trimesh.creation.icosphere().export(path)
    with pytest.raises(DataError, match="faces, more than the 10 allowed"):
        load_mesh(path, MeshLimits(faces=10))
    with pytest.raises(DataError, match="bytes, more than the 100 allowed"):
        load_mesh(path, MeshLimits(bytes=100))


def test_vertices_that_are_not_finite(tmp_path: Path):
    (tmp_path / "nan.off").write_text("OFF\n3 1 0\n0 0 0\n1 0 0\nnan 1 0\n3 0 1 2\n")
    with pytest.raises(DataError, match="not finite"):
        load_mesh(tmp_path / "nan.off")


def test_missing_files_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.ply: No such file"):
        load_mesh(tmp_path / "gone.ply")


def test_materials_are_read_beside_the_mesh_only(tmp_path: Path):
    inside = tmp_path / "inside"
    inside.mkdir()
    (tmp_path / "secret.mtl").write_text("newmtl m\nKd 1 0 0\n")
    text = "mtllib {}\nv 0 0 0\nv 1 0 0\nv 0 1 0\nusemtl m\nf 1 2 3\n"
    (inside / "a.obj").write_text(text.format("../secret.mtl"))
    assert load_mesh(inside / "a.obj").colours is None
    (inside / "own.mtl").write_text("newmtl m\nKd 0 0 1\n")
    (inside / "b.obj").write_text(text.format("own.mtl"))
    assert load_mesh(inside / "b.obj").colours.tolist() == [[0, 0, 255]]
    (inside / "c.obj").write_text(text.format(tmp_path / "secret.mtl"))
    assert load_mesh(inside / "c.obj").colours is None
