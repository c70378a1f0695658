from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources import open_shapes
from drwr_dist.sources.loading import load_mesh
from drwr_dist.sources.manifest import ManifestRow
from drwr_dist.sources.open_shapes import unpack_shapes

ZIP = "usr/share/furniture/Some.sh3f"
TRIANGLE = b"v 0 0 0\nv 2 0 0\nv 0 1 0\nf 1 2 3\n"
CATALOGUE = (
    b"id=caf\xe9\nmodel#1=/some/plain/plain.obj\nmodel#2=/some/turned/turned.obj\r\n"
    b"modelRotation#2=0 0 1 0 1 0 -1 0 0\r\n"
)


def make_zip(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


FURNITURE = {
    "PluginFurnitureCatalog.properties": CATALOGUE,
    "some/plain/plain.obj": TRIANGLE,
    "some/turned/turned.obj": TRIANGLE,
    "../../escape.obj": TRIANGLE,
}


def make_package(furniture: bytes, *, ending: str = "xz", name: str = f"./{ZIP}") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{ending}") as tar:
        for member, data in (("./usr/share/doc/x", b"odd"), (name, furniture)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    archive = b"!<arch>\n"
    for member, data in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{ending}", buffer.getvalue()),
    ):
        archive += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        archive += data + b"\n" * (len(data) % 2)
    return archive


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], str]:
    def write(data: bytes) -> str:
        path = tmp_path / "some.deb"
        path.write_bytes(data)
        monkeypatch.setattr(open_shapes, "PACKAGE_SHA256", hashlib.sha256(data).hexdigest())
        return str(path)

    return write


def row(member: str) -> ManifestRow:
    return ManifestRow(group="g", path=f"{ZIP}!{member}")


@pytest.mark.parametrize("ending", ["xz", "gz"])
def test_listed_meshes_and_their_rotations(package: Callable[[bytes], str], tmp_path: Path, ending: str):
    deb = package(make_package(make_zip(FURNITURE), ending=ending))
    rows = {"chair/a": row("some/plain/plain.obj"), "table/b": row("some/turned/turned.obj")}
    shapes = unpack_shapes(deb, rows, tmp_path / "out")
    assert shapes["chair/a"].path == tmp_path / "out/chair/a.obj"
    assert np.ptp(load_mesh(shapes["chair/a"].path).vertices, axis=0).tolist() == [2, 1, 0]
    # The package's front (+Z) becomes our front (+X); up stays up.
    assert np.allclose(shapes["chair/a"].rotation @ [0, 0, 1], [1, 0, 0])
    assert np.allclose(shapes["chair/a"].rotation @ [0, 1, 0], [0, 1, 0])
    # A model that the catalogue turns is turned first.
    turned = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    assert np.allclose(shapes["table/b"].rotation, shapes["chair/a"].rotation @ turned)


def test_names_in_the_archive_never_decide_where_a_file_goes(package: Callable[[bytes], str], tmp_path: Path):
    deb = package(make_package(make_zip(FURNITURE)))
    unpack_shapes(deb, {"chair/a": row("../../escape.obj")}, tmp_path / "deep" / "out")
    written = [path for path in tmp_path.rglob("*.obj")]
    assert written == [tmp_path / "deep/out/chair/a.obj"]


def test_another_file_is_refused(tmp_path: Path):
    (tmp_path / "x.deb").write_bytes(make_package(make_zip(FURNITURE)))
    with pytest.raises(DataError, match=r"x\.deb: not the package sweethome3d-furniture 1\.8-1: sha256 is"):
        unpack_shapes(str(tmp_path / "x.deb"), {"chair/a": row("some/plain/plain.obj")}, tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        unpack_shapes(str(tmp_path / "y.deb"), {"chair/a": row("some/plain/plain.obj")}, tmp_path)


@pytest.mark.parametrize(
    ("data", "wanted", "reason"),
    [
        (make_package(make_zip(FURNITURE)), f"{ZIP}!some/none.obj", "some/none.obj can't be read"),
        (make_package(make_zip(FURNITURE)), "usr/other.sh3f!a.obj", "usr/other.sh3f is not in the package"),
        (make_package(make_zip(FURNITURE), name="./usr/share"), f"{ZIP}!a.obj", "is not in the package"),
        (make_package(b"no zip"), f"{ZIP}!some/plain/plain.obj", "damaged: File is not a zip file"),
        (make_package(make_zip({})), f"{ZIP}!a.obj", "PluginFurnitureCatalog.properties can't be read"),
        (b"!<arch>\n", f"{ZIP}!a.obj", "no data.tar in it"),
        (b"odd", f"{ZIP}!a.obj", "no data.tar in it"),
        (make_package(make_zip(FURNITURE))[:-400], f"{ZIP}!some/plain/plain.obj", "damaged"),
    ],
)
def test_what_is_wrong_is_named(package: Callable[[bytes], str], tmp_path: Path, data: bytes, wanted: str, reason: str):
    deb = package(data)
    with pytest.raises(DataError, match=f"^{deb}: ") as caught:
        unpack_shapes(deb, {"chair/a": ManifestRow(group="g", path=wanted)}, tmp_path / "out")
    assert reason in str(caught.value)


def test_a_manifest_without_paths(package: Callable[[bytes], str], tmp_path: Path):
    with pytest.raises(UsageError, match="chair/a: path_in_package 'x' is not"):
        unpack_shapes(package(b""), {"chair/a": ManifestRow(group="g", path="x")}, tmp_path)


def test_sizes_are_bounded(package: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    deb = package(make_package(make_zip(FURNITURE | {"bomb.obj": bytes(10**6)})))
    monkeypatch.setattr(open_shapes, "_MAX_MESH", 10**5)
    with pytest.raises(DataError, match=r"bomb\.obj unpacks to more than 100000 bytes"):
        unpack_shapes(deb, {"chair/a": row("bomb.obj")}, tmp_path)
    monkeypatch.setattr(open_shapes, "_MAX_ARCHIVE", 100)
    with pytest.raises(DataError, match="unpacks to more than 100 bytes"):
        unpack_shapes(deb, {"chair/a": row("some/plain/plain.obj")}, tmp_path)
