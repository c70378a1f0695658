"""Meshes as strangers have them: each is imported, or named in one line, or skipped and reported."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest
import trimesh
from rich.console import Console
from view_layouts import read_all

from drwr_dist.errors import DataError
from drwr_dist.shards import ImportOptions, import_dataset

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0.5\nv 0 1 0\n"


def build(folder: Path, output: Path, *, skip_bad: bool = False) -> str:
    """Import; return what was said on the terminal."""
    options = ImportOptions(
        source="meshes", input=str(folder), output=str(output), views=2, image_size=32, workers=1,
        ground_truth_voxel=0.05, skip_bad=skip_bad,
    )  # fmt: skip
    log = output.parent / "log"
    with log.open("w") as file, warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # a stranger must see no warning of NumPy's
        import_dataset(options, Console(file=file, width=1000))
    return log.read_text()


def write(path: Path, text: str | bytes) -> None:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


BAD = {
    "nan.obj": ("v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n", "vertices are not finite"),
    "no_faces.off": ("OFF\n3 0 0\n0 0 0\n1 0 0\n0 1 0\n", "the mesh has no triangles"),
    "line.obj": ("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n", "the mesh has no area: every face is degenerate"),
    "point.obj": ("v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "the mesh has no extent"),
    "huge.obj": ("v 1e308 0 0\nv -1e308 0 0\nv 0 1e308 0\nf 1 2 3\n", "the mesh is too large: its extent overflows"),
    "cut.stl": (
        bytes(80) + (12).to_bytes(4, "little") + bytes(300),
        "the .stl file is cut short: 384 bytes, where 12 triangles need 684",
    ),
    "stub.stl": (bytes(50), "the binary .stl file is cut short: it has no header"),
    "empty.ply": (b"", "not a readable .ply mesh"),
    "missing_vertex.obj": ("v 0 0 0\nv 1 0 0\nf 1 2 9\n", "a face refers to a vertex that is not there"),
    "huge_quad.obj": (SQUARE.replace("1", "1e200") + "f 1 2 3 4\n", "the mesh is too large: its extent overflows"),
    "needle.obj": ("v 0 0 0\nv 0 1 0\nv 1e-5 1 0\nf 1 2 3\n", "cat/needle: view 00: the mask is empty"),
    "draco.gltf": (
        '{"asset":{"version":"2.0"},"extensionsRequired":["KHR_draco_mesh_compression"],"nodes":[]}',
        "its geometry is compressed (KHR_draco_mesh_compression), which is not read; export it without",
    ),
    "quantised.gltf": (
        '{"asset":{"version":"2.0"},"meshes":[{"primitives":[{"attributes":{"POSITION":0}}]}],'
        '"accessors":[{"componentType":5122,"normalized":true}]}',
        "its positions are normalised integers (KHR_mesh_quantization), not read; export floats",
    ),
    "cycle.gltf": (
        '{"asset":{"version":"2.0"},"nodes":[{"children":[1]},{"children":[0]}]}',
        "the nodes of the scene form a cycle",
    ),
    "buffer.gltf": (
        '{"asset":{"version":"2.0"},"buffers":[{"uri":"../../../etc/passwd","byteLength":10}]}',
        "not a readable .gltf mesh",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files(tmp_path: Path, name: str):
    folder = tmp_path / "in/cat"
    folder.mkdir(parents=True)
    text, reason = BAD[name]
    write(folder / name, text)
    with pytest.raises(DataError) as caught:
        build(tmp_path / "in", tmp_path / "out")
    assert str(caught.value).startswith(f"{folder / name}: {reason}") and "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no object was imported"):
        build(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert f"skipped cat/{Path(name).stem}: {folder / name}: {reason}" in (tmp_path / "log").read_text()
    trimesh.creation.box((1, 2, 3)).export(folder / "good.ply")
    assert f"skipped cat/{Path(name).stem}: {folder / name}: {reason}" in build(
        tmp_path / "in", tmp_path / "out", skip_bad=True
    )
    assert list(read_all(tmp_path / "out")) == ["cat/good"]


@pytest.mark.parametrize(("target", "reason"), [("secret.ply", "a link that leads out of "), ("nowhere.ply", "")])
def test_links(tmp_path: Path, target: str, reason: str):
    (tmp_path / "in/cat").mkdir(parents=True)
    trimesh.creation.box().export(tmp_path / "secret.ply")
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "in/cat/good.ply")
    os.symlink(tmp_path / target, tmp_path / "in/cat/link.ply")
    with pytest.raises(DataError, match=rf"in/cat/link\.ply: {reason}"):
        build(tmp_path / "in", tmp_path / "out")
    assert "skipped cat/link: " in build(tmp_path / "in", tmp_path / "out", skip_bad=True)
    assert list(read_all(tmp_path / "out")) == ["cat/good"]


def test_a_link_within_the_folder_is_fine(tmp_path: Path):
    (tmp_path / "in/cat").mkdir(parents=True)
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "in/cat/good.ply")
    os.symlink("good.ply", tmp_path / "in/cat/link.ply")
    build(tmp_path / "in", tmp_path / "out")
    assert sorted(read_all(tmp_path / "out")) == ["cat/good", "cat/link"]


def test_what_is_odd_but_fine(tmp_path: Path):
    """A sheet, no material file, no texture, far from the origin, very large, every suffix, names with spaces."""
    folder = tmp_path / "in/größe 2"
    folder.mkdir(parents=True)
    write(folder / "sheet.obj", SQUARE + "f 1 2 3 4\n")
    write(folder / "no material.OBJ", "mtllib gone.mtl\nusemtl a\n" + SQUARE + "f 1 2 3\nf 1 3 4\n")
    write(folder / "texture.mtl", "newmtl a\nKd 1 0 0\nmap_Kd gone.png\n")
    write(folder / "texture.obj", "mtllib texture.mtl\nusemtl a\n" + SQUARE + "f 1 2 3 4\n")
    write(folder / "far.obj", SQUARE.replace("v 0", "v 1000000").replace("v 1 ", "v 1000001 ") + "f 1 2 3 4\n")
    write(folder / "large.obj", SQUARE.replace("1", "1e30") + "f 1 2 3 4\n")
    for suffix in ("stl", "off", "glb", "ply"):
        trimesh.creation.box((1, 2, 3)).export(folder / f"日本 {suffix}.{suffix}")
    for name in ("scene.dae", "notes.txt", "picture.png", "._sheet.obj"):
        write(folder / name, "not a mesh that is read")
    write(folder / "byte order mark.obj", "\ufeff" + SQUARE + "f 1 2 3 4\n")
    write(folder / "tabs.obj", SQUARE.replace(" ", "\t") + "f\t1\t2\t3\t4\n")
    write(folder / "comments.obj", SQUARE.replace("v 1 0 0", "v 1 0 0 # a corner") + "f 1 2 3 4 # the square\n")
    write(folder / "unused vertex.obj", SQUARE + "v nan nan nan\nf 1 2 3 4\n")
    write(folder / "windows.obj", "mtllib .\\texture.mtl\r\nusemtl a\r\n" + SQUARE + "f 1 2 3 4\n")
    assert "skipped" not in build(tmp_path / "in", tmp_path / "out")
    found = read_all(tmp_path / "out")
    assert len(found) == 14 and {"gr_e_2/sheet", "gr_e_2/no_material", "gr_e_2/far", "gr_e_2/glb"} <= set(found)
    for name in ("texture", "windows"):
        red = found[f"gr_e_2/{name}"][1].images.astype(int)
        assert red[..., 0].max() > 50 and not red[..., 1:].any()


def test_an_object_in_a_folder_of_its_own(tmp_path: Path):
    """As downloads of glTF have it: the buffer lies beside the scene, its name a URI."""
    category = tmp_path / "in/chair"
    for name in ("first one", "second", "two", "textures"):
        (category / name).mkdir(parents=True)
    files = trimesh.exchange.gltf.export_gltf(trimesh.Scene(trimesh.creation.box((1, 2, 3))))
    write(category / "first one/scene.gltf", files.pop("model.gltf").replace(b"gltf_buffer", b"a%20buffer"))
    for buffer, data in files.items():
        write(category / "first one" / buffer.replace("gltf_buffer", "a buffer"), data)
    write(category / "second/model.obj", SQUARE + "f 1 2 3 4\n")
    for name in ("a.ply", "b.ply"):
        trimesh.creation.box((1, 2, 3)).export(category / "two" / name)
    log = build(tmp_path / "in", tmp_path / "out")
    assert (
        log.splitlines()[-1] == f"skipped chair/two: {category / 'two'}: 2 meshes in it; an object's folder holds one"
    )
    found = read_all(tmp_path / "out")
    assert sorted(found) == ["chair/first_one", "chair/second"]
    assert found["chair/second"][1].meta["licence"] == "unknown"  # a model.obj is ShapeNet's in a synset's folder alone
