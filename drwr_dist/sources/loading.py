"""Reading mesh files: bounded in size, and never a file outside the mesh's own folder."""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import GREY, Mesh
from drwr_dist.sources.gltf import check_gltf
from drwr_dist.sources.obj import parse_obj

_STL_HEADER, _STL_TRIANGLE = 84, 50  # bytes of a binary file: text and number of triangles; each of them
_NO_COLOUR = (102, 102, 102)  # what trimesh says where a material has no colour
MESH_SUFFIXES = (".ply", ".obj", ".off", ".stl", ".glb", ".gltf")


@dataclass(frozen=True)
class MeshLimits:
    """Bounds beyond which a mesh is refused."""

    bytes: int = 256 * 2**20  # of each file
    faces: int = 5_000_000


def load_mesh(path: Path, limits: MeshLimits | None = None) -> Mesh:
    """Read a mesh file; a scene of several parts becomes one mesh in the scene's frame.

    Args:
        path: a file of one of MESH_SUFFIXES.
        limits: refuse anything larger.

    Raises:
        DataError: names the file: unreadable, too large, no triangles, or vertices that are not finite.
    """
    bounds = limits or MeshLimits()
    try:
        data = _read_bounded(path, bounds.bytes)
        return parse_mesh(data, path.suffix[1:].lower(), bounds, _Folder(path.parent, bounds.bytes))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error


def parse_mesh(data: bytes, kind: str, limits: MeshLimits, folder: _Folder | None = None) -> Mesh:
    """Parse the bytes of a mesh file.

    Args:
        data: the whole file.
        kind: obj, ply, …
        limits: refuse more faces than this.
        folder: gives the bytes of files that the mesh refers to (materials, buffers); None: none of them.

    Raises:
        DataError: not a mesh, too many faces, no triangles, or vertices that are not finite.
    """
    if kind == "obj":
        mesh = parse_obj(data, None if folder is None else folder.get, limits.faces)
    else:
        mesh = _join(_parse_parts(data, kind, folder, limits.faces))
    if len(mesh.faces) > limits.faces:
        raise DataError(f"{len(mesh.faces)} faces, more than the {limits.faces} allowed; raise max_faces")
    if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
        raise DataError("a face refers to a vertex that is not there")
    used, faces = np.unique(mesh.faces, return_inverse=True)
    if not np.isfinite(mesh.vertices[used]).all():
        raise DataError("vertices are not finite")
    if len(used) == len(mesh.vertices):
        return mesh
    return Mesh(mesh.vertices[used], faces.reshape(-1, 3), mesh.colours)  # what no face uses may be anything


def write_mesh(mesh: Mesh, path: Path) -> None:
    """Write a mesh as binary PLY, with one colour per face where it has colours."""
    import trimesh

    colours = {} if mesh.colours is None else {"face_colors": mesh.colours}
    trimesh.Trimesh(mesh.vertices, mesh.faces, process=False, **colours).export(path)


def _parse_parts(data: bytes, kind: str, folder: _Folder | None, max_faces: int) -> list[Any]:
    """Return the triangle meshes of a file, each in the scene's frame."""
    import trimesh

    logging.getLogger("trimesh").setLevel(logging.CRITICAL)
    if kind in ("glb", "gltf"):
        check_gltf(data)
    if kind == "stl":
        _check_stl(data)
    try:
        loaded = trimesh.load_scene(io.BytesIO(data), file_type=kind, resolver=folder, process=False)
        _check_instances(loaded, max_faces)
        parts = [part for part in loaded.dump() if isinstance(part, trimesh.Trimesh) and len(part.faces)]
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"the .{kind} mesh needs more memory than there is") from error
    except Exception as error:  # the parsers raise nearly every kind of error on a damaged file
        raise DataError(f"not a readable .{kind} mesh ({type(error).__name__}: {error})") from error
    if not parts:
        raise DataError("the mesh has no triangles")
    return parts


def _check_stl(data: bytes) -> None:
    """Raise DataError where a binary STL file is shorter than its header says, which the parser takes for text."""
    text = data.lstrip()[:5].lower() == b"solid" and b"facet" in data[:1024].lower()
    if text:
        return
    if len(data) < _STL_HEADER:
        raise DataError("the binary .stl file is cut short: it has no header")
    triangles = int.from_bytes(data[_STL_HEADER - 4 : _STL_HEADER], "little")
    if (needed := _STL_HEADER + triangles * _STL_TRIANGLE) > len(data):
        raise DataError(
            f"the .stl file is cut short: {len(data)} bytes, where {triangles} triangles need {needed}; "
            "or it is neither binary nor text"
        )


def _check_instances(scene: Any, max_faces: int) -> None:
    """Raise DataError where a scene, each use of a part counted, has too many faces; before the parts are copied."""
    parts = [scene.geometry[scene.graph[node][1]] for node in scene.graph.nodes_geometry]
    faces = sum(len(getattr(part, "faces", ())) for part in parts)
    if faces > max_faces:
        raise DataError(f"{faces} faces, more than the {max_faces} allowed; raise max_faces")


def _join(parts: list[Any]) -> Mesh:
    """Put the parts of a scene together."""
    vertices, faces, colours, offset = [], [], [], 0
    for part in parts:
        vertices.append(np.asarray(part.vertices, dtype=np.float64))
        faces.append(np.asarray(part.faces, dtype=np.int64) + offset)
        colours.append(_face_colours(part))
        offset += len(part.vertices)
    if all(colour is None for colour in colours):
        return Mesh(np.concatenate(vertices), np.concatenate(faces))
    filled = [
        np.broadcast_to(np.array(GREY, np.uint8), (len(part), 3)) if colour is None else colour
        for part, colour in zip(faces, colours, strict=True)
    ]
    return Mesh(np.concatenate(vertices), np.concatenate(faces), np.concatenate(filled))


def _face_colours(part: Any) -> NDArray[np.uint8] | None:
    """Return one RGB colour per face [F, 3], or None where the part has no colour of its own."""
    visual = part.visual
    if not visual.defined:
        return None
    if visual.kind == "texture":
        colour = tuple(getattr(visual.material, "main_color", _NO_COLOUR)[:3])
        return None if colour == _NO_COLOUR else np.tile(np.asarray(colour, np.uint8), (len(part.faces), 1))
    return np.asarray(visual.face_colors, np.uint8)[:, :3]


def _read_bounded(path: Path, limit: int) -> bytes:
    size = path.stat().st_size
    if size > limit:
        raise DataError(f"{size} bytes, more than the {limit} allowed; simplify it or raise max_megabytes")
    return path.read_bytes()


class _Folder:
    """Gives trimesh the material and buffer files beside a mesh; no images, nothing outside its folder."""

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder, self._limit = folder.resolve(), limit

    def get(self, name: str) -> bytes:
        plain = (self._folder / name.replace("\\", "/")).resolve()
        path = plain if plain.exists() else (self._folder / unquote(name)).resolve()  # glTF's names are URIs
        if path.suffix.lower() not in (".mtl", ".bin") or not path.is_relative_to(self._folder):
            raise FileNotFoundError(name)
        return _read_bounded(path, self._limit)

    def __getitem__(self, name: str) -> bytes:
        return self.get(name)

    def namespaced(self, namespace: str) -> _Folder:
        """Return a resolver for a folder below this one, as trimesh asks for."""
        del namespace
        return self
