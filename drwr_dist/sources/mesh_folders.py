"""Finding meshes in a folder: DIR/<category>/<object>.ply|obj|off|stl|glb|gltf, or ShapeNet's layouts.

An object may also lie in a folder of its own, with the files that belong to it. A folder whose name is a synset id is
the category of that synset. Where the meshes lie in DIR itself, DIR is the category; DIR may be one synset's folder.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources.loading import MESH_SUFFIXES
from drwr_dist.sources.manifest import UNKNOWN
from drwr_dist.sources.shapenet import LICENCE, SYNSETS, is_synset_folder, model_mesh

Unused = tuple[str, str]  # the key that an object would have, and why it has none


ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


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


def list_meshes(folder: str, categories: Sequence[str] = ()) -> tuple[dict[str, MeshFile], list[Unused]]:
    """Find the meshes of a folder.

    Args:
        folder: to look in.
        categories: only these, by category or by the folder's name; none: all.

    Returns:
        Key → file, and what can't be used: ShapeNet models without a mesh, folders of several meshes, archives.

    Raises:
        UsageError: no such folder, a category that isn't there, or no mesh at all.
        DataError: two files would get the same key.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UsageError(f"input={folder}: no such folder")
    found: dict[str, MeshFile] = {}
    without: list[Unused] = []
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
            f"input={folder}: no meshes; expected {folder}/<category>/<object> (or {folder}/<object>, of one category) "
            f"with one of {kinds}, a folder <category>/<object>/ with one mesh in it, or ShapeNetCore's "
            "<synset>/<model>/model.obj or <synset>/<model>/models/model_normalized.obj"
        )
    return found, without


def _category_folders(root: Path, categories: Sequence[str]) -> list[Path]:
    folders = {path.name: path for path in _visible(root) if path.is_dir()}
    loose = [path for path in _visible(root) if _is_mesh(path)]
    if loose and (other := next((name for name in folders if _meshes_of(folders[name], name)[0]), None)):
        raise UsageError(
            f"input={root}: {loose[0].name} lies in it, but {other}/ has meshes too; put each into a category's folder"
        )
    if loose or is_synset_folder(root):
        folders = {root.resolve().name: root}
    by_category = {SYNSETS.get(name, name): name for name in folders} | {name: name for name in folders}
    if missing := sorted(set(categories) - set(by_category)):
        names = sorted({SYNSETS.get(name, name) for name in folders if _meshes_of(folders[name], name)[0]})
        close = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(missing[0], names, 1))
        there = ", ".join(names) or "none"
        raise UsageError(f"input={root}: no category folder {missing[0]!r}; {close}with meshes there are {there}")
    wanted = {by_category[name] for name in categories} or set(folders)
    return [place for name, place in folders.items() if name in wanted]


def _meshes_of(place: Path, name: str) -> tuple[list[MeshFile], list[Unused]]:
    """Return the meshes of a category's folder, and those of its objects that can't be used."""
    meshes: list[MeshFile] = []
    unused: list[Unused] = []
    for path in _visible(place):
        if _is_mesh(path):
            meshes.append(MeshFile(path, name, path.stem))
        elif path.suffix.lower() in ARCHIVES and path.is_file():
            unused.append((MeshFile(path, name, path.stem).key, f"{path}: an archive is not looked into; unpack it"))
        elif path.is_dir():
            own = MeshFile(path, name, path.name)
            inner = [file for file in _visible(path) if _is_mesh(file)]
            if found := model_mesh(path, name):
                meshes.append(replace(own, path=found[0], source=found[1], licence=LICENCE))
            elif name in SYNSETS:
                unused.append((own.key, f"{path}: neither model.obj nor models/model_normalized.obj in it"))
            elif len(inner) == 1:
                meshes.append(replace(own, path=inner[0]))
            elif inner:
                unused.append((own.key, f"{path}: {len(inner)} meshes in it; an object's folder holds one"))
    return meshes, unused


def _visible(folder: Path) -> list[Path]:
    """List a folder without hidden files, such as the `._…` that macOS puts into archives."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _is_mesh(path: Path) -> bool:
    # A link to nothing counts too: reading it says so.
    return path.suffix.lower() in MESH_SUFFIXES and (path.is_file() or path.is_symlink())
