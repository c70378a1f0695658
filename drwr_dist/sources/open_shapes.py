"""The open benchmark: aircraft, cars and furniture from three Debian packages, so that anyone can rebuild it.

The manifest names each model's package, its path in it, and the package's checksum. The path says what the model is:

- `usr/….sh3f!folder/file.obj`: furniture, in a zip with a catalogue that says how models are turned;
- `usr/….ac`: an aircraft of FlightGear, without what isn't its surface (lights, shadows, spinning propellers, …);
- `usr/….acc`: a car of TORCS, with its wheels.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources.ac3d import parse_ac3d
from drwr_dist.sources.debian import Package, locate_package, read_members
from drwr_dist.sources.geometry import Mesh
from drwr_dist.sources.loading import write_mesh
from drwr_dist.sources.manifest import ManifestRow
from drwr_dist.sources.torcs import assemble, wheel_set

_CATALOGUE = "PluginFurnitureCatalog.properties"  # in each zip: name, author, rotation of every model
_MAX_MESH = 64 * 2**20  # bytes of each unpacked OBJ or catalogue
_FRONT_TO_X = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])  # the furniture's front is +Z, ours +X
_TAIL_FROM_X = np.diag([-1.0, 1.0, -1.0])  # FlightGear's +X points to the tail
# Objects of an aircraft that are no part of its surface, by their names.
_NO_SURFACE = re.compile(
    r"light(?!ning)|(?<!no)shadow|prop.*(disc|disk|blur)|\bdis[ck]\b|blur|contrail|condens|hose|flare|glow|strobe|halo"
    r"|flame|^chute$",
    re.IGNORECASE,
)
_WHEELS = "usr/share/games/torcs/wheels/{}/wheel0.acc"
_WHEEL_SETS = ("openwheel1-1", "stock1-1", "stock1-2", "stock1-3", *(f"trb1-{number}" for number in range(1, 7)))
_PLAIN_WHEELS = "trb1-1"  # for cars that name no set


@dataclass(frozen=True)
class OpenShape:
    """One unpacked mesh and how to turn it."""

    path: Path
    rotation: NDArray[np.float64]  # [3, 3], from the file's frame to +Y up, +X front


Progress = Callable[[str, int], None]  # (what was done, how many are to be done)


def unpack_shapes(
    place: str,
    rows: Mapping[str, ManifestRow],
    folder: Path,
    *,
    fetch: bool = False,
    progress: Progress = lambda what, total: None,
) -> dict[str, OpenShape]:
    """Unpack the listed models.

    Args:
        place: a folder of .deb files, or one .deb file.
        rows: key `<category>/<object id>` → package, and where the model lies in it.
        folder: gets `<category>/<object id>.obj` or `.ply`.
        fetch: let apt-get download packages that are missing in the folder.
        progress: called after each model.

    Raises:
        UsageError: a package is missing, or a row doesn't say where its model lies.
        DataError: another file or version, or a listed model is not in it; names the file and the member.
    """
    packages: dict[Package, dict[str, ManifestRow]] = defaultdict(dict)
    for key, row in rows.items():
        if not (row.package and row.sha256):
            raise UsageError(f"{key}: the manifest needs source_package, version and package_sha256")
        if not re.search(r"\.sh3f!.+\.obj$|\.acc?$", row.path):
            raise UsageError(f"{key}: path_in_package {row.path!r} is none of ….sh3f!….obj, ….ac, ….acc")
        packages[Package(row.package, row.version, row.sha256)][key] = row
    files = {package: locate_package(place, package, fetch) for package in packages}  # all, before the work begins
    shapes: dict[str, OpenShape] = {}
    for package, wanted in packages.items():
        for key, shape in _unpack_package(files[package], wanted, folder):
            progress("unpacking", len(rows))
            shapes[key] = shape
    return shapes


def _unpack_package(file: Path, rows: Mapping[str, ManifestRow], folder: Path) -> Iterator[tuple[str, OpenShape]]:
    """Unpack the models of one package as it is read; cars when all their parts are there."""
    zips: dict[str, dict[str, str]] = defaultdict(dict)  # zip → member → key
    aircraft: dict[str, str] = {}  # file → key
    cars: dict[str, str] = {}
    for key, row in rows.items():
        archive, bang, member = row.path.partition("!")
        if bang:
            zips[archive][member] = key
        else:
            (cars if row.path.endswith(".acc") else aircraft)[row.path] = key
    parts = {name: b"" for car in cars for name in (car, _description(car))}
    if cars:
        parts |= {_WHEELS.format(name): b"" for name in _WHEEL_SETS}
    for name, data in read_members(file, {*zips, *aircraft, *parts}):
        if name in zips:
            yield from _unpack_zip(data, zips[name], folder, f"{file}: {name}")
        elif name in aircraft:
            mesh = _parse(data, f"{file}: {name}", lambda part: bool(_NO_SURFACE.search(part)))
            yield aircraft[name], _written(mesh, folder, aircraft[name], _TAIL_FROM_X)
        else:
            parts[name] = data
    for name, key in cars.items():
        yield key, _written(_car(parts, name, str(file)), folder, key, np.eye(3))


def _description(car: str) -> str:
    return str(PurePosixPath(car).with_suffix(".xml"))


def _car(parts: Mapping[str, bytes], name: str, where: str) -> Mesh:
    """Put a car together from the files of its package."""
    xml = parts[_description(name)].decode("latin-1")
    wheels = wheel_set(xml)
    model = _WHEELS.format(wheels if wheels in _WHEEL_SETS else _PLAIN_WHEELS)
    body, wheel = _parse(parts[name], f"{where}: {name}"), _parse(parts[model], f"{where}: {model}")
    try:
        return assemble(body, wheel, xml)
    except DataError as error:
        raise DataError(f"{where}: {_description(name)}: {error}") from error


def _parse(data: bytes, where: str, skip: Callable[[str], bool] = lambda part: False) -> Mesh:
    try:
        return parse_ac3d(data, skip)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def _written(mesh: Mesh, folder: Path, key: str, rotation: NDArray[np.float64]) -> OpenShape:
    path = folder / f"{key}.ply"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mesh(mesh, path)
    return OpenShape(path, rotation)


def _unpack_zip(data: bytes, members: Mapping[str, str], folder: Path, where: str) -> Iterator[tuple[str, OpenShape]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as furniture:
            rotations = _rotations(_read_member(furniture, _CATALOGUE, where).decode("latin-1"))
            for member, key in members.items():
                path = folder / f"{key}.obj"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(_read_member(furniture, member, where))
                yield key, OpenShape(path, _FRONT_TO_X @ rotations.get(member, np.eye(3)))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{where}: damaged: {error}") from error


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
