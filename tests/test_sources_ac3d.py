from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drwr_dist.errors import DataError
from drwr_dist.sources.ac3d import parse_ac3d
from drwr_dist.sources.geometry import GREY, face_areas

HEAD = 'AC3Db\nMATERIAL "two words" rgb 1 0.5 0 amb 0 0 0\nMATERIAL "b" rgb 0 0 1 amb 0 0 0\nOBJECT world\nkids {}\n'
SQUARE = "numvert 4\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n"


def surface(*corners: int, flags: str = "0x10", material: int = 0) -> str:
    return f"SURF {flags}\nmat {material}\nrefs {len(corners)}\n" + "".join(f"{corner} 0 0\n" for corner in corners)


def poly(name: str, surfaces: list[str], *, extra: str = "", vertices: str = SQUARE, kids: str = "kids 0\n") -> str:
    return f'OBJECT poly\nname "{name}"\n{extra}{vertices}numsurf {len(surfaces)}\n{"".join(surfaces)}{kids}'


def ac(*objects: str) -> bytes:
    return (HEAD.format(len(objects)) + "".join(objects)).encode("latin-1")


def test_polygons_and_colours():
    mesh = parse_ac3d(ac(poly("a", [surface(0, 1, 2, 3), surface(0, 1, 2, material=1)])))
    assert face_areas(mesh).sum() == pytest.approx(1.5)
    assert mesh.colours is not None and {tuple(c) for c in mesh.colours.tolist()} == {(255, 128, 0), (0, 0, 255)}


def test_textured_objects_are_grey():
    mesh = parse_ac3d(ac(poly("a", [surface(0, 1, 2)], extra='texture "skin.rgb"\ntexrep 1 1\n')))
    assert mesh.colours is not None and mesh.colours.tolist() == [list(GREY)]


def test_a_concave_polygon_keeps_its_opening():
    arch = "numvert 8\n0 0 0\n1 0 0\n1 3 0\n2 3 0\n2 0 0\n3 0 0\n3 4 0\n0 4 0\n"
    assert face_areas(parse_ac3d(ac(poly("a", [surface(*range(8))], vertices=arch)))).sum() == pytest.approx(9)


def test_triangle_strips_with_normals():
    vertices = "numvert 4\n0 0 0 0 0 1\n1 0 0 0 0 1\n0 1 0 0 0 1\n1 1 0 0 0 1\n"
    mesh = parse_ac3d(ac(poly("a", [surface(0, 1, 2, 2, 3, flags="0x14")], vertices=vertices)))
    assert mesh.faces.tolist() == [[0, 1, 2]]  # the repeated corner makes degenerate triangles, which are dropped
    mesh = parse_ac3d(ac(poly("a", [surface(0, 1, 2, 3, flags="0x14")], vertices=vertices)))
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    assert np.allclose(np.cross(b - a, c - a)[:, 2], 1)  # both wound alike


def test_lines_are_no_surface():
    assert len(parse_ac3d(ac(poly("a", [surface(0, 1, 2), surface(0, 1, 2, flags="0x22")]))).faces) == 1


def test_nested_frames():
    """A child moves with its parent; `rot` holds row vectors: x_parent = x M + loc."""
    turn = "rot 0 1 0 -1 0 0 0 0 1\nloc 10 0 0\n"  # x becomes y
    child = poly("child", [surface(0, 1, 2)], extra="loc 5 0 0\n")
    mesh = parse_ac3d(ac(f'OBJECT group\nname "parent"\n{turn}kids 1\n' + child + "", poly("next", [surface(0, 1, 2)])))
    assert mesh.vertices[:4].tolist() == [[10, 5, 0], [10, 6, 0], [9, 6, 0], [9, 5, 0]]
    assert mesh.vertices[4:].tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]  # the frame ends with the group


def test_objects_are_left_out_by_name_with_all_that_they_hold():
    group = 'OBJECT group\nname "lights"\nkids 1\n' + poly("bulb", [surface(0, 1, 2)])
    body = poly("body", [surface(0, 1, 2, 3)])
    assert len(parse_ac3d(ac(group, body), lambda name: name == "lights").faces) == 2
    assert len(parse_ac3d(ac(group, body)).faces) == 3
    with pytest.raises(DataError, match="no triangles"):
        parse_ac3d(ac(group), lambda name: "light" in name)


def test_free_text_is_passed_over():
    mesh = parse_ac3d(ac(poly("a", [surface(0, 1, 2)], extra="data 18\nkids 5\nOBJECT poly\n")))
    assert len(mesh.faces) == 1


def test_deep_nesting_does_not_exhaust_the_stack():
    deep = 'OBJECT group\nname "g"\nkids 1\n' * 5000 + poly("a", [surface(0, 1, 2)])
    assert len(parse_ac3d(ac(deep)).faces) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an AC3D file"),
        (b"ply\n", "not an AC3D file"),
        (ac(), "no triangles"),
        (ac(poly("a", [surface(0, 1, 9)])), "refers to a vertex that is not there"),
        (ac(poly("a", [surface(0, 1, -1)])), "refers to a vertex that is not there"),
        (ac(poly("a", [surface(0, 1, 2)]))[:-20], "the file is cut short"),
        (ac("OBJECT poly\nnumvert 2\n0 0 0\n0 x 0\nkids 0\n"), r"line 9: could not convert"),
        (ac("OBJECT poly\nnumvert 1\n0 0\nkids 0\n"), r"line 8: a vertex needs three"),
        (ac("OBJECT poly\nnumsurf 1\nSURF 0x10\nkids 0\n"), "a surface without corners"),
        (ac("OBJECT poly\nnumvert 99999999999\n0 0 0\n"), "the file is cut short"),
    ],
)
def test_errors_name_the_line(data: bytes, reason: str):
    with pytest.raises(DataError, match=reason):
        parse_ac3d(data)


def test_faces_are_bounded():
    with pytest.raises(DataError, match="more than the 3 faces allowed"):
        parse_ac3d(ac(poly("a", [surface(0, 1, 2, 3)] * 2)), max_faces=3)


@given(
    st.lists(st.sampled_from(["OBJECT poly", "kids 1", "kids 0", "numsurf 1", "SURF 0x10", "refs 3", "0 0 0", "rot 1"]))
)
@settings(max_examples=200, deadline=None)
def test_any_lines_are_a_mesh_or_a_data_error(lines: list[str]):
    with contextlib.suppress(DataError):
        parse_ac3d("\n".join(["AC3Db", *lines]).encode())
