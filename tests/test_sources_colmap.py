from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from posed_scenes import BENT, Scene, in_unit_cube, photograph, scene
from view_layouts import read_all, run_command, run_import, share_on_masks

from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError
from drwr_dist.sources.colmap import read_cameras
from drwr_dist.sources.lens import Lens

RADIAL = Lens(200, 150, 185.0, 185.0, 103.0, 70.0, k1=-0.1)


def quaternion(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation: the eigenvector of its quadratic form, not the formula that is tested."""
    xx, yx, zx, xy, yy, zy, xz, yz, zz = rotation.T.ravel()
    form = np.array(
        [
            [xx - yy - zz, 0, 0, 0],
            [yx + xy, yy - xx - zz, 0, 0],
            [zx + xz, zy + yz, zz - xx - yy, 0],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    values, vectors = np.linalg.eigh(form / 3)
    return vectors[[3, 0, 1, 2], np.argmax(values)]


def write_colmap(folder: Path, found: Scene, camera: str, model: str = "sparse/0") -> Path:
    """Write an object as COLMAP has it, with a mask per image; points of every second image are an empty line."""
    for name in ("images/left", "masks", model):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = ["# Image list with two lines of data per image:"]
    for view, matrix in enumerate(found.cameras):
        rgba = photograph(found, view)
        Image.fromarray(rgba[..., :3]).save(folder / f"images/left/{view} x.png")
        Image.fromarray(rgba[..., 3]).save(folder / f"masks/{view} x.png.png")
        pose = " ".join(f"{value:.12g}" for value in (*quaternion(matrix[:3, :3]), *matrix[:3, 3]))
        lines += [f"{view + 7} {pose} 3 left/{view} x.png", "" if view % 2 else "10.5 20.25 -1 3.5 4 17"]
    (folder / model / "images.txt").write_text("\n".join(lines) + "\n")
    (folder / model / "cameras.txt").write_text(f"# Camera list\n3 {camera}\n")
    return folder


@pytest.fixture(scope="module")
def jar() -> Scene:
    return scene(4, views=6)


@pytest.fixture
def folder(jar: Scene, tmp_path: Path) -> Path:
    return write_colmap(tmp_path / "in/jar/a", jar, "OPENCV 200 150 190 186 104 71 -0.12 0.03 0.002 -0.003")


def test_surface_points_project_onto_the_masks(folder: Path, jar: Scene, tmp_path: Path):
    scenes = {"jar/a": jar, "jar/b": scene(5, views=6, lens=RADIAL)}
    write_colmap(tmp_path / "in/jar/b", scenes["jar/b"], "SIMPLE_RADIAL 200 150 185 103 70 -0.1", model=".")
    run_command("posed", tmp_path / "in", tmp_path / "out", "image_size=96")
    assert verify_dataset(str(tmp_path / "out")) == []
    found = read_all(tmp_path / "out")
    assert sorted(found) == sorted(scenes)
    for key, (_, sample) in found.items():
        points = in_unit_cube(scenes[key].points, sample.meta)
        assert share_on_masks(points, sample) >= 0.999
        assert share_on_masks(points * (-1, 1, -1), sample) < 0.95
        assert sample.meta["source_images"] == [f"left/{view} x.png" for view in range(6)]


@pytest.mark.parametrize(
    ("line", "lens"),
    [
        ("SIMPLE_PINHOLE 200 150 190 100 75", Lens(200, 150, 190, 190, 100, 75)),
        ("PINHOLE 200 150 190 186 100 75", Lens(200, 150, 190, 186, 100, 75)),
        ("SIMPLE_RADIAL 200 150 190 100 75 0.1", Lens(200, 150, 190, 190, 100, 75, k1=0.1)),
        ("RADIAL 200 150 190 100 75 0.1 -0.2", Lens(200, 150, 190, 190, 100, 75, k1=0.1, k2=-0.2)),
        ("OPENCV 200 150 190 186 104 71 -0.12 0.03 0.002 -0.003", BENT),
    ],
)
def test_camera_models(tmp_path: Path, line: str, lens: Lens):
    (tmp_path / "cameras.txt").write_text(f"# CAMERA_ID, MODEL, WIDTH, HEIGHT, PARAMS[]\n\n42 {line}\n")
    assert astuple(read_cameras(tmp_path / "cameras.txt")[42]) == astuple(lens)


def edit(folder: Path, name: str, change: Callable[[str], str]) -> None:
    path = folder / "sparse/0" / name
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("cameras.txt", lambda t: t.replace("OPENCV", "FISHEYE"), "line 2: camera model FISHEYE is not read, only"),
        ("cameras.txt", lambda t: t.replace(" -0.003", ""), "line 2: OPENCV has 8 parameters, found 7"),
        ("cameras.txt", lambda t: t.replace("200", "wide"), "line 2: not CAMERA_ID, MODEL"),
        ("cameras.txt", lambda t: t.replace("190", "-1"), "line 2: focal lengths -1"),
        ("cameras.txt", lambda t: t.replace("3 OPENCV", "4 OPENCV"), "line 2: camera 3 is not in cameras.txt"),
        ("images.txt", lambda t: "", "no image in it"),
        ("images.txt", lambda t: t.replace("left/2", "left/9"), "line 6: .*image 'left/9 x.png' is not there"),
        ("images.txt", lambda t: t.replace("left/2", "../../../../up/2"), "line 6: .*leads out of the input folder"),
        ("images.txt", lambda t: re.sub(r"\n7 \S+", "\n7 9", t), "line 2: the quaternion has length"),
        ("images.txt", lambda t: t.replace("\n7 ", "\nseven "), None),  # the id says nothing
        ("images.txt", lambda t: t.replace(" 3 left/0", " left/0"), "line 2: not IMAGE_ID, QW"),
        ("images.txt", lambda t: t.replace("\n\n", "\n"), "line 5: 2D points expected"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, tmp_path: Path, name: str, change: Callable, reason: str | None):
    edit(folder, name, change)
    if reason is None:
        run_import("posed", tmp_path / "in", tmp_path / "out")
        return
    with pytest.raises(DataError, match=reason) as caught:
        run_import("posed", tmp_path / "in", tmp_path / "out")
    assert str(folder) in str(caught.value)


def test_binary_models_are_refused_with_the_way_out(folder: Path, tmp_path: Path):
    for name in ("cameras", "images"):
        (folder / f"sparse/0/{name}.txt").rename(folder / f"sparse/0/{name}.bin")
    with pytest.raises(DataError, match="a binary COLMAP model; convert it: colmap model_converter"):
        run_import("posed", tmp_path / "in", tmp_path / "out")


def test_views_without_a_mask_are_refused(folder: Path, tmp_path: Path):
    (folder / "masks/3 x.png.png").unlink()
    with pytest.raises(DataError, match=r"3 x\.png: no mask: .* into masks/<image name>\.png"):
        run_import("posed", tmp_path / "in", tmp_path / "out")
