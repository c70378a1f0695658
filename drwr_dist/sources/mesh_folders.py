"""Finding meshes in a folder: DIR/<category>/<object>.ply|obj|off|stl|glb|gltf, or ShapeNet's layouts.

A folder whose name is a synset id is the category of that synset; DIR may also be one synset's folder.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources.loading import MESH_SUFFIXES
from drwr_dist.sources.manifest import UNKNOWN
from drwr_dist.sources.shapenet import LICENCE, SYNSETS, is_synset_folder, model_mesh


@dataclass(frozen=True)
class MeshFile:
    """One object's mesh."""

    path: Path
    folder: str  # name of the category's folder
    name: str  # of the object
    source: str = UNKNOWN  # as the index counts it
    licence: str = UNKNOWN

    @property
    def key(self) -> str:
        """Return <category>/<object id>."""
        return f"{object_id(SYNSETS.get(self.folder, self.folder))}/{object_id(self.name)}"


def object_id(name: str) -> str:
    """Turn a file name into an object id: ASCII letters, digits, - and _, so that tar readers group it rightly."""
    clean = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_")
    if clean and len(clean) <= 64:
        return clean
    return f"{clean[:48]}_{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}".lstrip("_")


def list_meshes(folder: str, categories: Sequence[str] = ()) -> tuple[dict[str, MeshFile], list[Path]]:
    """Find the meshes of a folder.

    Args:
        folder: to look in.
        categories: only these, by category or by the folder's name; none: all.

    Returns:
        Key → file, and the folders of ShapeNet models that hold no mesh.

    Raises:
        UsageError: no such folder, a category that isn't there, or no mesh at all.
        DataError: two files would get the same key.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"input={folder}: no such folder")
    found: dict[str, MeshFile] = {}
    without: list[Path] = []
    for place in _category_folders(root, categories):
        name = place.resolve().name if place == root else place.name
        meshes, empty = _meshes_of(place, name)
        for mesh in meshes:
            if mesh.key in found:
                raise DataError(f"{mesh.path} and {found[mesh.key].path} both become {mesh.key}; rename one of them")
            found[mesh.key] = mesh
        without += empty
    if not found:
        kinds = ", ".join(MESH_SUFFIXES)
        raise UsageError(
            f"input={folder}: no meshes; expected {folder}/<category>/<object> with one of {kinds}, or ShapeNetCore's "
            "<synset>/<model>/model.obj or <synset>/<model>/models/model_normalized.obj"
        )
    return found, without


def _category_folders(root: Path, categories: Sequence[str]) -> list[Path]:
    if is_synset_folder(root):
        folders = {root.resolve().name: root}
    else:
        folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != "."}
    by_category = {SYNSETS.get(name, name): name for name in folders} | {name: name for name in folders}
    if missing := sorted(set(categories) - set(by_category)):
        names = ", ".join(sorted({SYNSETS.get(name, name) for name in folders})) or "none"
        raise UsageError(f"input={root}: no category folder {missing[0]!r}; there are {names}")
    wanted = {by_category[name] for name in categories} or set(folders)
    return [place for name, place in folders.items() if name in wanted]


def _meshes_of(place: Path, name: str) -> tuple[list[MeshFile], list[Path]]:
    """Return the meshes of a category's folder, and those of its models that have none."""
    meshes: list[MeshFile] = []
    empty: list[Path] = []
    for path in sorted(place.iterdir()):
        if path.suffix.lower() in MESH_SUFFIXES and (path.is_file() or path.is_symlink()):
            # A link to nothing counts too: reading it says so.
            meshes.append(MeshFile(path, name, path.stem))
        elif path.is_dir() and (found := model_mesh(path)):
            meshes.append(MeshFile(found[0], name, path.name, found[1], LICENCE))
        elif path.is_dir() and name in SYNSETS:
            empty.append(path)
    return meshes, empty


def without_mesh(folders: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yield key and reason for each ShapeNet model without a mesh."""
    for folder in folders:
        key = MeshFile(folder, folder.parent.resolve().name, folder.name).key
        yield key, f"{folder}: neither model.obj nor models/model_normalized.obj in it"
