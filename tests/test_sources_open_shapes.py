from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drwr_dist.data.index import load_index
from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources import debian, open_shapes
from drwr_dist.sources.loading import load_mesh
from drwr_dist.sources.manifest import ManifestRow, read_manifest
from drwr_dist.sources.open_shapes import unpack_shapes
from drwr_dist.sources.splits import assign_splits, read_splits

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


def make_package(files: dict[str, bytes], *, ending: str = "xz", links: dict[str, str] | None = None) -> bytes:
    """A Debian package with these files (and symbolic links) in it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{ending}") as tar:
        for member, data in {"usr/share/doc/x": b"odd", **files}.items():
            info = tarfile.TarInfo(f"./{member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for member, target in (links or {}).items():
            info = tarfile.TarInfo(f"./{member}")
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    archive = b"!<arch>\n"
    for member, data in (
        ("debian-binary", b"2.0\n"),
        ("control.tar.xz", b"odd"),
        (f"data.tar.{ending}", buffer.getvalue()),
    ):
        archive += f"{member:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode()
        archive += data + b"\n" * (len(data) % 2)
    return archive


def ac3d(*objects: tuple[str, tuple[float, float], float]) -> bytes:
    """An AC3D file of triangles, given by name, extent along x, and height."""
    lines = ["AC3Db", 'MATERIAL "white" rgb 1 1 1', "OBJECT world", f"kids {len(objects)}"]
    for name, (left, right), height in objects:
        lines += ["OBJECT poly", f'name "{name}"', "numvert 3"]
        lines += [f"{left} 0 0", f"{right} 0 0", f"{right} {height} 0"]
        lines += ["numsurf 1", "SURF 0x20", "mat 0", "refs 3", "0 0 0", "1 0 0", "2 0 0", "kids 0"]
    return "\n".join(lines).encode()


@pytest.fixture
def package(tmp_path: Path) -> Callable[[bytes], str]:
    def write(data: bytes) -> str:
        path = tmp_path / "some_1.0_all.deb"
        path.write_bytes(data)
        return str(path)

    return write


def row(path: str, deb: str | Path = "") -> ManifestRow:
    digest = hashlib.sha256(Path(deb).read_bytes()).hexdigest() if deb else "0" * 64
    return ManifestRow(group="g", path=path, package="some", version="1.0", sha256=digest)


def furniture(member: str, deb: str = "") -> ManifestRow:
    return row(f"{ZIP}!{member}", deb)


@pytest.mark.parametrize("ending", ["xz", "gz"])
def test_listed_meshes_and_their_rotations(package: Callable[[bytes], str], tmp_path: Path, ending: str):
    deb = package(make_package({ZIP: make_zip(FURNITURE)}, ending=ending))
    rows = {"chair/a": furniture("some/plain/plain.obj", deb), "table/b": furniture("some/turned/turned.obj", deb)}
    shapes = unpack_shapes(deb, rows, tmp_path / "out")
    assert shapes["chair/a"].path == tmp_path / "out/chair/a.obj"
    assert np.ptp(load_mesh(shapes["chair/a"].path).vertices, axis=0).tolist() == [2, 1, 0]
    # The package's front (+Z) becomes our front (+X); up stays up.
    assert np.allclose(shapes["chair/a"].rotation @ [0, 0, 1], [1, 0, 0])
    assert np.allclose(shapes["chair/a"].rotation @ [0, 1, 0], [0, 1, 0])
    # A model that the catalogue turns is turned first.
    turned = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    assert np.allclose(shapes["table/b"].rotation, shapes["chair/a"].rotation @ turned)


def test_an_aircraft_without_its_lights(package: Callable[[bytes], str], tmp_path: Path):
    path = "usr/share/AI/Aircraft/737/Models/737.ac"
    deb = package(
        make_package({path: ac3d(("fuselage", (0, 4), 1), ("Nav-Light", (9, 10), 1), ("PropDisc", (-5, -4), 1))})
    )
    shape = unpack_shapes(deb, {"airplane/x": row(path, deb)}, tmp_path / "out")["airplane/x"]
    mesh = load_mesh(shape.path)
    assert mesh.vertices[:, 0].tolist() == pytest.approx([0, 4, 4])
    assert (shape.rotation @ [1, 0, 0]).tolist() == [-1, 0, 0]  # +X is the tail there
    assert (shape.rotation @ [0, 1, 0]).tolist() == [0, 1, 0]
    assert np.linalg.det(shape.rotation) == pytest.approx(1)


CAR = "usr/share/games/torcs/cars/fast/fast.acc"
CAR_XML = "".join(
    f"""<section name="{end} Axle"><attnum name="xpos" val="{x}"/></section>
    <section name="{end} {side} Wheel"> <attnum name="ypos" val="{y}" unit="m"/>
    <!-- <attnum name="rim diameter" val="9"/> -->
    <attnum name="rim diameter" unit="in" min="1" val="20"/><attnum name="tire width" unit="mm" val="200"/>
    <attnum name="tire height-width ratio" val="0.5"/></section>"""
    for end, x in (("Front", 1.5), ("Rear", -1.25))
    for side, y in (("Left", 0.75), ("Right", -0.75))
)


def torcs_files(xml: str = CAR_XML) -> dict[str, bytes]:
    wheels = {open_shapes._WHEELS.format(name): ac3d(("tyre", (-0.5, 0.5), 1)) for name in open_shapes._WHEEL_SETS}
    return {CAR: ac3d(("body", (-2, 2), 4)), CAR.replace(".acc", ".xml"): xml.encode(), **wheels}


def test_a_car_gets_its_wheels(package: Callable[[bytes], str], tmp_path: Path):
    deb = package(make_package(torcs_files()))
    shape = unpack_shapes(deb, {"car/x": row(CAR, deb)}, tmp_path / "out")["car/x"]
    mesh = load_mesh(shape.path)
    assert len(mesh.faces) == 5 and np.array_equal(shape.rotation, np.eye(3))
    diameter = 20 * 0.0254 + 2 * 0.2 * 0.5
    wheels = mesh.vertices[3:].reshape(4, 3, 3)
    front_right, rear_left = wheels[0], wheels[3]
    assert np.allclose(front_right.min(axis=0)[:2], (1.5 - diameter / 2, diameter / 2))
    assert np.allclose(front_right[:, 2], 0.75) and np.allclose(rear_left[:, 2], -0.75)  # +Z is the right side
    assert np.isclose((rear_left[:, 0].min() + rear_left[:, 0].max()) / 2, -1.25)


@pytest.mark.parametrize(
    ("change", "reason"),
    [(("rim diameter", "rum diameter"), "rim diameter is missing"), (('unit="mm"', 'unit="ell"'), "unknown unit")],
)
def test_a_car_without_measures(package: Callable[[bytes], str], tmp_path: Path, change: tuple[str, str], reason: str):
    deb = package(make_package(torcs_files(CAR_XML.replace(*change))))
    with pytest.raises(DataError, match=f"fast.xml: Front Right Wheel: .*{reason}"):
        unpack_shapes(deb, {"car/x": row(CAR, deb)}, tmp_path / "out")


@pytest.mark.parametrize("name", ["../../escape.obj", "/escape.obj", "a/../../../escape.obj"])
def test_names_in_the_archives_never_decide_where_a_file_goes(
    package: Callable[[bytes], str], tmp_path: Path, name: str
):
    inside = tmp_path / "deep" / "out"
    deb = package(
        make_package({ZIP: make_zip(FURNITURE | {name: TRIANGLE}), "../../escape.ac": ac3d(("a", (0, 1), 1))})
    )
    rows = {"chair/a": furniture(name, deb), "airplane/b": row("../../escape.ac", deb)}
    before = set(tmp_path.rglob("*"))
    unpack_shapes(deb, rows, inside)
    written = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert written == {inside / "chair/a.obj", inside / "airplane/b.ply"}


def test_links_in_the_archive_are_not_followed(package: Callable[[bytes], str], tmp_path: Path):
    (tmp_path / "secret.ac").write_bytes(ac3d(("a", (0, 1), 1)))
    deb = package(make_package({}, links={"usr/x.ac": str(tmp_path / "secret.ac")}))
    with pytest.raises(DataError, match=r"usr/x\.ac is not in the package"):
        unpack_shapes(deb, {"airplane/b": row("usr/x.ac", deb)}, tmp_path / "out")


def test_another_file_is_refused(package: Callable[[bytes], str], tmp_path: Path):
    deb = package(make_package({ZIP: make_zip(FURNITURE)}))
    for place in (deb, str(tmp_path)):
        with pytest.raises(DataError, match=r"some_1\.0_all\.deb: not the package some 1\.0: sha256 is"):
            unpack_shapes(place, {"chair/a": furniture("some/plain/plain.obj")}, tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        unpack_shapes(str(tmp_path / "y.deb"), {"chair/a": furniture("some/plain/plain.obj")}, tmp_path)


def test_a_folder_of_packages(package: Callable[[bytes], str], tmp_path: Path):
    deb = Path(package(make_package({ZIP: make_zip(FURNITURE)})))
    (tmp_path / "some_0.9_all.deb").write_bytes(b"an older one")
    rows = {"chair/a": furniture("some/plain/plain.obj", str(deb))}
    assert list(unpack_shapes(str(tmp_path), rows, tmp_path / "out")) == ["chair/a"]
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"some_\*\.deb is missing"):
        unpack_shapes(str(tmp_path / "none"), rows, tmp_path / "out")


class TestFetching:
    def apt(self, folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "bin").mkdir()
        (folder / "bin/apt-get").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin/apt-get").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")

    def test_a_missing_package_is_fetched(self, package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        deb = package(make_package({ZIP: make_zip(FURNITURE)}))
        self.apt(tmp_path, f'[ "$*" = "download some=1.0" ] && cp {deb} .', monkeypatch)
        rows = {"chair/a": furniture("some/plain/plain.obj", deb)}
        assert list(unpack_shapes(str(tmp_path / "new"), rows, tmp_path / "out", fetch=True)) == ["chair/a"]
        assert (tmp_path / "new/some_1.0_all.deb").exists()

    def test_what_apt_says_is_passed_on(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.apt(tmp_path, "echo 'E: Version 1.0 was not found' >&2; exit 100", monkeypatch)
        with pytest.raises(UsageError, match=r"apt-get download some=1\.0 failed: E: Version 1\.0 was not found"):
            unpack_shapes(str(tmp_path / "new"), {"chair/a": furniture("a.obj")}, tmp_path / "out", fetch=True)

    def test_without_apt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UsageError, match="no apt-get to fetch it"):
            unpack_shapes(str(tmp_path / "new"), {"chair/a": furniture("a.obj")}, tmp_path / "out", fetch=True)


GOOD = make_package({ZIP: make_zip(FURNITURE)})


@pytest.mark.parametrize(
    ("data", "wanted", "reason"),
    [
        (GOOD, f"{ZIP}!some/none.obj", "some/none.obj can't be read"),
        (GOOD, "usr/other.sh3f!a.obj", "usr/other.sh3f is not in the package"),
        (make_package({"usr/share": b""}), f"{ZIP}!a.obj", "is not in the package"),
        (make_package({ZIP: b"no zip"}), f"{ZIP}!some/plain/plain.obj", "damaged: File is not a zip file"),
        (make_package({ZIP: make_zip({})}), f"{ZIP}!a.obj", "PluginFurnitureCatalog.properties can't be read"),
        (
            make_package({"usr/x.ac": b"AC3Db\nOBJECT poly\nnumvert 9\n"}),
            "usr/x.ac",
            "usr/x.ac: line 3: the file is cut",
        ),
        (b"!<arch>\n", f"{ZIP}!a.obj", "no data.tar in it"),
        (b"!<arch>\n" + b"x" * 60, f"{ZIP}!a.obj", "no data.tar in it"),
        (b"odd", f"{ZIP}!a.obj", "no data.tar in it"),
        (GOOD[:-400], f"{ZIP}!some/plain/plain.obj", "damaged"),
    ],
)
def test_what_is_wrong_is_named(package: Callable[[bytes], str], tmp_path: Path, data: bytes, wanted: str, reason: str):
    deb = package(data)
    with pytest.raises(DataError, match=f"^{deb}: ") as caught:
        unpack_shapes(deb, {"chair/a": row(wanted, deb)}, tmp_path / "out")
    assert reason in str(caught.value)


def test_a_manifest_without_paths_or_checksums(package: Callable[[bytes], str], tmp_path: Path):
    with pytest.raises(UsageError, match="chair/a: path_in_package 'x' is none of"):
        unpack_shapes(package(b""), {"chair/a": row("x")}, tmp_path)
    with pytest.raises(UsageError, match="chair/a: the manifest needs source_package, version and package_sha256"):
        unpack_shapes(package(b""), {"chair/a": ManifestRow(group="g", path="a.ac")}, tmp_path)


class TestBombs:
    def test_a_zip_member(self, package: Callable[[bytes], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        deb = package(make_package({ZIP: make_zip(FURNITURE | {"bomb.obj": bytes(10**6)})}))
        monkeypatch.setattr(open_shapes, "_MAX_MESH", 10**5)
        with pytest.raises(DataError, match=r"bomb\.obj unpacks to more than 100000 bytes"):
            unpack_shapes(deb, {"chair/a": furniture("bomb.obj", deb)}, tmp_path)

    @pytest.mark.parametrize("bound", ["MAX_MEMBER", "MAX_UNPACKED"])
    def test_the_archive(self, package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: str):
        deb = package(make_package({"usr/zeros": bytes(10**6), "usr/x.ac": bytes(10**6)}))
        monkeypatch.setattr(debian, bound, 10**5)
        with pytest.raises(DataError, match=r"unpacks to more than 100000 bytes"):
            unpack_shapes(deb, {"airplane/a": row("usr/x.ac", deb)}, tmp_path)


BENCHMARK = Path(__file__).parent.parent / "shards" / "open_shapes"


def test_the_benchmark_is_split_by_near_duplicate_group():
    """The lists in the repository are the import's own choice with seed 0: 70/10/20, no group on both sides."""
    manifest = read_manifest(str(BENCHMARK / "manifest.csv"))
    groups = {f"{category}/{name}": row.group for (category, name), row in manifest.items()}
    splits = read_splits(str(BENCHMARK / "splits.csv"), groups)
    assert splits == assign_splits(groups, seed=0)
    assert len(splits) == 367 and len({key.split("/")[0] for key in splits}) == 12
    shares = [sum(split == name for split in splits.values()) / 367 for name in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.04)
    assert {row.package for row in manifest.values()} == {"flightgear-data-ai", "torcs-data", "sweethome3d-furniture"}
    assert all(len(row.sha256) == 64 and row.licence != "unknown" for row in manifest.values())


def test_the_demo_shards_are_a_part_of_the_benchmark():
    demo = load_index(BENCHMARK.parent / "demo")
    table = dict(line.split(",") for line in (BENCHMARK / "splits.csv").read_text().splitlines()[1:])
    for split in ("train", "val", "test"):
        assert {table[key] for _, _, key in demo.select(split)} == {split}
