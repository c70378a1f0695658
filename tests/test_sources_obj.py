from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import GREY, Mesh, face_areas
from drwr_dist.sources.obj import ear_clip, parse_obj

SQUARE = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\n"


def area(mesh: Mesh) -> float:
    return float(face_areas(mesh).sum())


def polygon_obj(corners: np.ndarray) -> bytes:
    lines = [f"v {x!r} {y!r} {z!r}" for x, y, z in corners.tolist()]
    return "\n".join([*lines, "f " + " ".join(str(i + 1) for i in range(len(corners)))]).encode()


def test_forms_of_faces():
    text = "# comment\n" + SQUARE + "vt 0 0\nvn 0 0 1\ng part\ns off\nf 1/1/1 2/1/1 3//1\nf -4 -2 -1\nl 1 2\n"
    mesh = parse_obj(text.encode())
    assert mesh.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert area(mesh) == 1 and mesh.colours is None


def test_continued_lines_and_windows_endings():
    assert area(parse_obj((SQUARE + "f 1 2 \\\n3 4\n").replace("\n", "\r\n").encode())) == 1


def test_repeated_corners_are_dropped():
    assert parse_obj((SQUARE + "f 1 1 2 3 4 1\nf 1 2 2\n").encode()).faces.shape == (2, 3)


def test_a_concave_outline_keeps_its_opening():
    """An arch in one face: a fan of triangles would fill the opening."""
    arch = np.array([[0, 0, 0], [1, 0, 0], [1, 3, 0], [2, 3, 0], [2, 0, 0], [3, 0, 0], [3, 4, 0], [0, 4, 0]], float)
    assert area(parse_obj(polygon_obj(arch))) == pytest.approx(12 - 3)
    assert area(parse_obj(polygon_obj(arch[::-1]))) == pytest.approx(12 - 3)


def test_a_concave_quad():
    dart = np.array([[0, 0, 0], [4, 0, 0], [1, 1, 0], [0, 4, 0]], float)
    for turn in range(4):
        assert area(parse_obj(polygon_obj(np.roll(dart, turn, axis=0)))) == pytest.approx(4)


@given(st.lists(st.floats(0.2, 1.0), min_size=5, max_size=20), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_star_shaped_polygons_keep_their_area(radii: list[float], seed: int):
    angles = np.arange(len(radii)) * 2 * np.pi / len(radii)
    flat = np.stack([np.cos(angles), np.sin(angles), np.zeros_like(angles)], axis=1) * np.array(radii)[:, None]
    random = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    x, y = flat[:, 0], flat[:, 1]
    exact = abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    triangles = list(ear_clip(flat @ turn.T + random.normal(size=3)))
    assert len(triangles) == len(radii) - 2
    assert area(Mesh(flat, np.array(triangles))) == pytest.approx(exact, rel=1e-6)


def test_a_degenerate_polygon_still_ends():
    line = np.stack([np.arange(6.0), np.zeros(6), np.zeros(6)], axis=1)
    assert len(list(ear_clip(line))) == 4
    assert len(list(ear_clip(np.zeros((7, 3))))) == 5


class TestMaterials:
    TEXT = ("mtllib red.mtl\n" + SQUARE + "usemtl red\nf 1 2 3\nusemtl other\nf 1 3 4\n").encode()

    def test_diffuse_colours(self):
        mesh = parse_obj(self.TEXT, lambda name: b"newmtl red\nKa 0 0 0\nKd 1 0.5 0\n" if name == "red.mtl" else b"")
        assert mesh.colours is not None and mesh.colours.tolist() == [[255, 128, 0], list(GREY)]

    def test_missing_or_odd_material_files_leave_it_grey(self):
        def missing(name: str) -> bytes:
            raise FileNotFoundError(name)

        assert parse_obj(self.TEXT, missing).colours is None
        assert parse_obj(self.TEXT, lambda name: b"newmtl red\nKd spectral x.rfl\n\xff\xfe").colours is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no triangles"),
        ("v 0 0 0\n", "no triangles"),
        ("v 0 0\nf 1 1 1\n", "line 1: three coordinates"),
        ("v 0 0 zero\n", "line 1: could not convert"),
        (SQUARE + "f 1 2 9\n", "refers to a vertex that is not there"),
        (SQUARE + "f 1 2 -9\n", "refers to a vertex that is not there"),
        (SQUARE + "f 0 1 2\n", "line 5: vertex indices start at 1"),
        (SQUARE + "f a b c\n", "line 5: invalid literal"),
    ],
)
def test_errors_name_the_line(text: str, reason: str):
    with pytest.raises(DataError, match=reason):
        parse_obj(text.encode())


@given(st.text("vf 0123-/.\n", max_size=80))
@settings(max_examples=100, deadline=None)
def test_any_text_is_a_mesh_or_a_data_error(text: str):
    try:
        mesh = parse_obj((SQUARE + text).encode())
    except DataError:
        return
    assert mesh.faces.min() >= 0 and mesh.faces.max() < len(mesh.vertices)
