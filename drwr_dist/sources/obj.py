"""Wavefront OBJ files: positions, polygons and the diffuse colours of their materials.

Modelling programs write polygons of any number of corners, often concave ones (the outline of a chair's side in
one face). Cutting those into a fan of triangles, as quick readers do, fills openings; here they are ear-clipped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import GREY, Mesh

_MOST_TESTS = 10_000_000  # points held against ears, per polygon: some seconds
Triangle = tuple[int, int, int]


def parse_obj(data: bytes, read_material: Callable[[str], bytes] | None = None, max_faces: int = 5_000_000) -> Mesh:
    """Parse an OBJ file.

    Args:
        data: the whole file.
        read_material: gives the bytes of a material file by the name in `mtllib`, or raises OSError; None: every
            face is grey.
        max_faces: refuse more triangles than this, before they are made.

    Returns:
        All faces as triangles, in the order of the file within each number of corners; coloured where a material
        gives a diffuse colour.

    Raises:
        DataError: names the line: a number that can't be read, a face that refers to a missing vertex; or no face.
    """
    vertices, polygons, libraries = _read_lines(data.decode("utf-8-sig", errors="replace"), max_faces)
    if not polygons:
        raise DataError("the mesh has no triangles")
    positions = np.asarray(vertices, dtype=np.float64).reshape(-1, 3)
    triangles: list[NDArray[np.int64]] = []
    materials: list[str] = []
    for corners, group in sorted(polygons.items()):
        faces = np.asarray([indices for indices, _ in group], dtype=np.int64)
        if faces.min() < 0 or faces.max() >= len(positions):
            raise DataError("a face refers to a vertex that is not there")
        cut, owner = triangulate(positions, faces, corners)
        triangles.append(cut)
        materials += [group[number][1] for number in owner]
    return Mesh(positions, np.concatenate(triangles), _colours(materials, libraries, read_material))


def _read_lines(
    text: str, max_faces: int
) -> tuple[list[list[float]], dict[int, list[tuple[list[int], str]]], list[str]]:
    """Return positions, polygons by number of corners as (indices, material), and the names of material files."""
    vertices: list[list[float]] = []
    polygons: dict[int, list[tuple[list[int], str]]] = defaultdict(list)
    libraries: list[str] = []
    material, triangles = "", 0
    for number, line in enumerate(text.replace("\\\r\n", " ").replace("\\\n", " ").split("\n"), start=1):
        head, rest = _words(line)
        try:
            if head == "v":
                vertices.append([float(word) for word in rest.split()[:3]])
                if len(vertices[-1]) != 3:
                    raise ValueError("three coordinates are needed")
            elif head == "f":
                corners = [_index(word.split("/", 1)[0], len(vertices)) for word in rest.partition("#")[0].split()]
                corners = [corner for place, corner in enumerate(corners) if corner != corners[place - 1]]
                triangles += max(0, len(corners) - 2)
                if triangles > max_faces:
                    raise ValueError(f"more than the {max_faces} faces allowed; raise max_faces")
                if len(corners) >= 3:
                    polygons[len(corners)].append((corners, material))
            elif head == "usemtl":
                material = rest
            elif head == "mtllib":
                libraries.append(rest)
        except ValueError as error:
            raise DataError(f"line {number}: {error}") from error
    return vertices, polygons, libraries


def _words(line: str) -> tuple[str, str]:
    """Split a line into its first word and the rest, by spaces or tabs."""
    head, *rest = line.split(None, 1) or [""]
    return head, rest[0].strip() if rest else ""


def _index(word: str, count: int) -> int:
    """Turn an OBJ index (from 1, or from -1 backwards) into one from 0."""
    index = int(word)
    if index == 0:
        raise ValueError("vertex indices start at 1")
    return index - 1 if index > 0 else count + index


# --- polygons into triangles ----------------------------------------------------------------------------------


def triangulate(
    positions: NDArray[np.float64], faces: NDArray[np.int64], corners: int
) -> tuple[NDArray[np.int64], list[int]]:
    """Cut polygons [F, corners] into triangles [T, 3]; also say which polygon each triangle comes from."""
    if corners == 3:
        return faces, list(range(len(faces)))
    if corners == 4:
        return _cut_quads(positions, faces)
    triangles, owner = [], []
    for number, face in enumerate(faces):
        for triangle in ear_clip(positions[face]):
            triangles.append(face[list(triangle)])
            owner.append(number)
    return np.asarray(triangles), owner


def _cut_quads(positions: NDArray[np.float64], quads: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[int]]:
    """Cut each quad along the diagonal 0-2, or along 1-3 where it is concave at 1 or 3."""
    a, b, c, d = (positions[quads[:, i]] for i in range(4))
    with np.errstate(over="ignore", invalid="ignore"):  # such a mesh is refused by its extent
        same_side = np.einsum("qi,qi->q", np.cross(b - a, c - a), np.cross(c - a, d - a)) >= 0
    first = np.where(same_side[:, None], quads[:, [0, 1, 2]], quads[:, [0, 1, 3]])
    second = np.where(same_side[:, None], quads[:, [0, 2, 3]], quads[:, [1, 2, 3]])
    owner = np.repeat(np.arange(len(quads)), 2)
    return np.stack([first, second], axis=1).reshape(-1, 3), owner.tolist()


def ear_clip(polygon: NDArray[np.float64]) -> Iterator[Triangle]:
    """Cut a simple, nearly flat polygon into triangles by clipping ears.

    Args:
        polygon: corners [N, 3] in order, convex or not.

    Yields:
        N - 2 triangles as numbers of corners. A polygon that crosses itself still gives N - 2 triangles.
    """
    flat = _flatten(polygon)
    left = list(range(len(flat)))
    tests = _MOST_TESTS
    while len(left) > 3:
        ear = 0  # where there is no ear to be found, or not in a reasonable time, the corner is clipped all the same
        for place in range(len(left) if tests > 0 else 0):
            tests -= len(left)
            if _is_ear(flat, left, place):
                ear = place
                break
        yield left[ear - 1], left[ear], left[(ear + 1) % len(left)]
        del left[ear]
    yield left[0], left[1], left[2]


def _flatten(polygon: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Project corners [N, 3] onto their mean plane so that they run counter-clockwise."""
    following = np.roll(polygon, -1, axis=0)
    normal = np.cross(polygon - polygon[0], following - polygon[0]).sum(axis=0)
    length = np.linalg.norm(normal)
    if not length > 0:
        return [(float(x), float(y)) for x, y, _ in polygon]
    normal /= length
    first = np.cross(normal, np.eye(3)[np.argmin(np.abs(normal))])
    first /= np.linalg.norm(first)
    plane = polygon @ np.stack([first, np.cross(normal, first)], axis=1)
    return [(float(x), float(y)) for x, y in plane]


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """Return twice the signed area of a triangle; positive: counter-clockwise."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _is_ear(flat: list[tuple[float, float]], left: list[int], place: int) -> bool:
    """Say whether the corner is convex and no other remaining corner lies in its triangle."""
    names = left[place - 1], left[place], left[(place + 1) % len(left)]
    a, b, c = (flat[name] for name in names)
    if _turn(a, b, c) <= 0:
        return False
    for other in left:
        point = flat[other]
        if other in names or point in (a, b, c):
            continue
        if _turn(a, b, point) >= 0 and _turn(b, c, point) >= 0 and _turn(c, a, point) >= 0:
            return False
    return True


# --- colours --------------------------------------------------------------------------------------------------


def _colours(
    materials: list[str], libraries: list[str], read_material: Callable[[str], bytes] | None
) -> NDArray[np.uint8] | None:
    """Return one colour per triangle [T, 3], or None where no material gives one."""
    if read_material is None:
        return None
    known: dict[str, tuple[int, int, int]] = {}
    for library in libraries:
        try:
            known |= _parse_mtl(read_material(library).decode("utf-8", errors="replace"))
        except OSError:
            continue  # a mesh without its material file is a grey mesh
    if not known:
        return None
    return np.asarray([known.get(material, GREY) for material in materials], dtype=np.uint8)


def _parse_mtl(text: str) -> dict[str, tuple[int, int, int]]:
    """Read `newmtl NAME` and `Kd r g b`: material → RGB."""
    found: dict[str, tuple[int, int, int]] = {}
    name = ""
    for line in text.splitlines():
        head, rest = _words(line)
        if head == "newmtl":
            name = rest
        elif head == "Kd":
            try:
                red, green, blue = (round(255 * min(max(float(word), 0.0), 1.0)) for word in rest.split()[:3])
            except ValueError:
                continue
            found[name] = (red, green, blue)
    return found
