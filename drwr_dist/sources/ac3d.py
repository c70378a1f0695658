"""AC3D files (`.ac`, and `.acc` as the racing game TORCS writes them): polygons and triangle strips, nested objects.

Textures are not read: a face has the colour of its material, or the renderer's grey where its object is textured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import GREY, Mesh
from drwr_dist.sources.obj import triangulate

Colour = tuple[int, int, int]
_POLYGON, _STRIP = 0, 4  # low bits of a surface's flags; the others are lines


@dataclass
class _Object:
    """One object of the file; its vertices are in its own frame: x_parent = rotation x + location."""

    outer: tuple[NDArray[np.float64], NDArray[np.float64]]  # rotation and translation of the parent, to the world
    hidden: bool  # it or one that holds it is to be left out
    rotation: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    location: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))
    textured: bool = False
    vertices: list[list[float]] = field(default_factory=list)
    polygons: dict[int, list[list[int]]] = field(default_factory=lambda: defaultdict(list))  # by number of corners
    materials: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))  # of each of these polygons
    kids: int = 0

    def frame(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return rotation [3, 3] and translation [3] from this object's frame to the world."""
        rotation, translation = self.outer
        return rotation @ self.rotation, rotation @ self.location + translation

    def add(self, kind: int, corners: list[int], material: int) -> int:
        """Take a surface in; return the number of triangles that it will become."""
        if kind == _STRIP:
            found = [corners[i : i + 3] if i % 2 == 0 else corners[i : i + 3][::-1] for i in range(len(corners) - 2)]
            found = [triangle for triangle in found if len(set(triangle)) == 3]
        else:
            outline = [corner for place, corner in enumerate(corners) if corner != corners[place - 1]]
            found = [outline] if kind == _POLYGON and len(outline) >= 3 else []
        for polygon in found:
            self.polygons[len(polygon)].append(polygon)
            self.materials[len(polygon)].append(material)
        return sum(len(polygon) - 2 for polygon in found)


def parse_ac3d(data: bytes, skip: Callable[[str], bool] = lambda name: False, max_faces: int = 5_000_000) -> Mesh:
    """Parse an AC3D file.

    Args:
        data: the whole file.
        skip: says by its name whether an object is left out, with all that it holds.
        max_faces: refuse more triangles than this.

    Returns:
        All surfaces as triangles in the file's frame, in the file's order within each object.

    Raises:
        DataError: names the line: not AC3D, cut short, a number that can't be read; or no face, or too many.
    """
    reader = _Reader(data.decode("latin-1").splitlines(), skip, max_faces)
    objects = reader.objects()
    parts = [_triangles(item, reader.colours) for item in objects if item.polygons and not item.hidden]
    if not parts:
        raise DataError("the mesh has no triangles")
    offsets = np.cumsum([0, *(len(vertices) for vertices, _, _ in parts[:-1])])
    return Mesh(
        np.concatenate([vertices for vertices, _, _ in parts]),
        np.concatenate([faces + offset for (_, faces, _), offset in zip(parts, offsets, strict=True)]),
        np.concatenate([colours for _, _, colours in parts]),
    )


def _triangles(
    item: _Object, palette: Sequence[Colour]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.uint8]]:
    """Return world vertices [N, 3], faces [F, 3] and face colours [F, 3] of one object."""
    rotation, translation = item.frame()
    vertices = np.asarray(item.vertices, dtype=np.float64).reshape(-1, 3) @ rotation.T + translation
    faces, colours = [], []
    for corners, polygons in sorted(item.polygons.items()):
        indices = np.asarray(polygons, dtype=np.int64)
        if indices.min() < 0 or indices.max() >= len(vertices):
            raise DataError("a face refers to a vertex that is not there")
        cut, owner = triangulate(vertices, indices, corners)
        materials = [item.materials[corners][number] for number in owner]
        faces.append(cut)
        colours += [
            palette[material] if not item.textured and 0 <= material < len(palette) else GREY for material in materials
        ]
    return vertices, np.concatenate(faces), np.asarray(colours, dtype=np.uint8)


class _Reader:
    """Goes through the lines once; nesting is kept on a list, so that a deeply nested file can't exhaust the stack."""

    def __init__(self, lines: list[str], skip: Callable[[str], bool], max_faces: int) -> None:
        self.colours: list[Colour] = []
        self._lines, self._skip, self._max_faces = lines, skip, max_faces
        self._place = 0  # number of lines taken
        self._faces = 0

    def objects(self) -> list[_Object]:
        """Read the whole file."""
        if not self._lines or not self._lines[0].startswith("AC3D"):
            raise DataError("not an AC3D file")
        found: list[_Object] = []
        try:
            self._read(found)
        except (ValueError, IndexError) as error:
            raise DataError(f"line {self._place}: {error}") from error
        return found

    def _next(self) -> list[str]:
        if self._place >= len(self._lines):
            raise ValueError("the file is cut short")
        self._place += 1
        return self._lines[self._place - 1].split()

    def _read(self, found: list[_Object]) -> None:
        world = np.eye(3), np.zeros(3)
        open_objects: list[_Object] = []  # those whose children are not all read yet
        current: _Object | None = None
        while self._place < len(self._lines):
            words = self._next()
            if not words:
                continue
            if words[0] == "MATERIAL":
                self.colours.append(_material(words))
            elif words[0] == "OBJECT":
                parent = open_objects[-1] if open_objects else None
                current = _Object(parent.frame() if parent else world, bool(parent and parent.hidden))
                found.append(current)
            elif current is not None:
                self._read_property(current, words)
                if words[0] == "kids":
                    open_objects.append(current)
                    current = None
                    while open_objects and open_objects[-1].kids == 0:
                        open_objects.pop()
                        if open_objects:
                            open_objects[-1].kids -= 1
        if current is not None:  # a count of children that is too high, as in files edited by hand, does no harm
            raise ValueError("the file is cut short")

    def _read_property(self, item: _Object, words: list[str]) -> None:
        head = words[0]
        if head == "name":
            item.hidden = item.hidden or self._skip(" ".join(words[1:]).strip('"'))
        elif head == "data":
            self._skip_text(int(words[1]))
        elif head == "rot":  # row vectors in the file: x_parent = x M
            item.rotation = np.array(words[1:10], dtype=np.float64).reshape(3, 3).T
        elif head == "loc":
            item.location = np.array(words[1:4], dtype=np.float64)
        elif head == "texture":
            item.textured = True
        elif head == "numvert":
            # .acc files add a normal to each vertex
            item.vertices = [[float(word) for word in self._next()[:3]] for _ in range(int(words[1]))]
            if any(len(vertex) != 3 for vertex in item.vertices):
                raise ValueError("a vertex needs three coordinates")
        elif head == "numsurf":
            for _ in range(int(words[1])):
                self._read_surface(item)
        elif head == "kids":
            item.kids = int(words[1])

    def _skip_text(self, length: int) -> None:
        """Pass over the free text of an object, which may have several lines."""
        while length > 0:
            self._next()
            length -= len(self._lines[self._place - 1]) + 1

    def _read_surface(self, item: _Object) -> None:
        kind, material = _POLYGON, -1
        while True:
            words = self._next()
            head = words[0] if words else ""
            if head == "SURF":
                kind = int(words[1], 16) & 0xF
            elif head == "mat":
                material = int(words[1])
            elif head == "refs":
                corners = [int(self._next()[0]) for _ in range(int(words[1]))]
                self._faces += item.add(kind, corners, material)
                if self._faces > self._max_faces:
                    raise DataError(f"more than the {self._max_faces} faces allowed; raise max_faces")
                return
            elif head in ("OBJECT", "kids", "MATERIAL"):
                raise ValueError("a surface without corners")


def _material(words: list[str]) -> Colour:
    """Read the colour of `MATERIAL "name" rgb r g b …`; the name may hold spaces."""
    place = words.index("rgb")
    red, green, blue = (round(255 * min(max(float(word), 0.0), 1.0)) for word in words[place + 1 : place + 4])
    return red, green, blue
