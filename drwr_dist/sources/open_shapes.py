"""Open furniture and cars from the Debian package sweethome3d-furniture, so that anyone can rebuild the demo shards.

The package (`apt-get download sweethome3d-furniture`) is an `ar` archive that holds a tar of `.sh3f` zips of OBJ
files. It is taken apart here, in memory: only the files that the manifest names are read, each bounded in size,
and they are written under names of our own, so that nothing in the archives decides where a file goes.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources.manifest import ManifestRow

PACKAGE = "sweethome3d-furniture 1.8-1"
PACKAGE_SHA256 = "3ccb90c63f9525e887a767b9cd5c8b6933b8b6b2973a615a5359ee68a2118668"
_CATALOGUE = "PluginFurnitureCatalog.properties"  # in each zip: name, author, rotation of every model
_MAX_ARCHIVE = 512 * 2**20  # bytes of the data archive, and of each zip in it
_MAX_MESH = 64 * 2**20  # bytes of each unpacked OBJ or catalogue
_FRONT_TO_X = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # the package's front is +Z, ours +X


@dataclass(frozen=True)
class OpenShape:
    """One unpacked mesh and how to turn it."""

    path: Path
    rotation: NDArray[np.float64]  # [3, 3], from the file's frame to +Y up, +X front


def unpack_shapes(package: str, rows: Mapping[str, ManifestRow], folder: Path) -> dict[str, OpenShape]:
    """Unpack the listed meshes of the package.

    Args:
        package: path of the .deb file.
        rows: key `<category>/<object id>` → where the mesh lies (`<zip in the package>!<file in the zip>`).
        folder: gets `<category>/<object id>.obj`.

    Raises:
        UsageError: there is no such file.
        DataError: another file or version, or a listed mesh is not in it; names the file and the member.
    """
    wanted: dict[str, dict[str, str]] = defaultdict(dict)
    for key, row in rows.items():
        archive, bang, member = row.path.partition("!")
        if not bang:
            raise UsageError(f"{key}: path_in_package {row.path!r} is not <zip in the package>!<file in the zip>")
        wanted[archive][member] = key
    shapes: dict[str, OpenShape] = {}
    try:
        with _data_archive(package) as archive_file:
            for name, data in _tar_members(archive_file, set(wanted), package):
                with zipfile.ZipFile(io.BytesIO(data)) as furniture:
                    shapes.update(_unpack_zip(furniture, wanted.pop(name), folder, f"{package}: {name}"))
    except (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise DataError(f"{package}: damaged: {error}") from error
    if wanted:
        raise DataError(f"{package}: {sorted(wanted)[0]} is not in the package")
    return shapes


def _data_archive(package: str) -> io.BytesIO:
    """Return the compressed data.tar of a .deb (an `ar` archive: 60-byte headers, contents padded to 2 bytes)."""
    try:
        data = Path(package).read_bytes()
    except OSError as error:
        raise UsageError(f"input={package}: {error.strerror or error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != PACKAGE_SHA256:
        raise DataError(
            f"{package}: not the package {PACKAGE}: sha256 is {found}, expected {PACKAGE_SHA256}; "
            "shards/README.md says where to get it"
        )
    position = 8 if data.startswith(b"!<arch>\n") else len(data)
    while position + 60 <= len(data):
        header = data[position : position + 60]
        size = int(header[48:58])
        if header[:16].startswith(b"data.tar"):
            return io.BytesIO(data[position + 60 : position + 60 + size])
        position += 60 + size + size % 2
    raise DataError(f"{package}: not a Debian package: no data.tar in it")


def _tar_members(archive: io.BytesIO, names: set[str], package: str) -> Iterator[tuple[str, bytes]]:
    """Yield the wanted regular files of a compressed tar."""
    total = 0
    with tarfile.open(fileobj=archive, mode="r:*") as tar:
        for member in tar:
            total += member.size
            if total > _MAX_ARCHIVE:
                raise DataError(f"{package}: unpacks to more than {_MAX_ARCHIVE} bytes")
            name = member.name.removeprefix("./")
            if name in names and member.isreg():
                file = tar.extractfile(member)
                assert file is not None  # a regular file always has contents
                yield name, file.read()


def _unpack_zip(
    furniture: zipfile.ZipFile, members: Mapping[str, str], folder: Path, where: str
) -> dict[str, OpenShape]:
    rotations = _rotations(_read_member(furniture, _CATALOGUE, where).decode("latin-1"))
    shapes = {}
    for member, key in members.items():
        path = folder / f"{key}.obj"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_read_member(furniture, member, where))
        shapes[key] = OpenShape(path, _FRONT_TO_X @ rotations.get(member, np.eye(3)))
    return shapes


def _read_member(furniture: zipfile.ZipFile, name: str, where: str) -> bytes:
    try:
        with furniture.open(name) as file:
            data = file.read(_MAX_MESH + 1)
    except (KeyError, RuntimeError) as error:  # not there, or encrypted
        raise DataError(f"{where}: {name} can't be read ({error})") from error
    if len(data) > _MAX_MESH:
        raise DataError(f"{where}: {name} unpacks to more than {_MAX_MESH} bytes")
    return data


def _rotations(catalogue: str) -> dict[str, NDArray[np.float64]]:
    """Read the lines `model#7=/folder/file.obj` and `modelRotation#7=1 0 0 0 1 0 0 0 1`: file → rotation [3, 3]."""
    entries: dict[str, dict[str, str]] = defaultdict(dict)
    for name, number, value in re.findall(r"^(model|modelRotation)#(\d+)=(.*?)\s*$", catalogue, re.MULTILINE):
        entries[number][name] = value
    return {
        entry["model"].lstrip("/"): np.array(entry["modelRotation"].split(), dtype=np.float64).reshape(3, 3)
        for entry in entries.values()
        if "model" in entry and "modelRotation" in entry
    }
