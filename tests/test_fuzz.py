"""Whatever lies in a file, its reader gives a good result or one clear error: no other exception, no hang, no flood.

Each reader gets random bytes, and valid files with damage: bytes changed, removed, doubled and cut, and JSON with
values that nobody expects. A few hundred examples run with the fast tests, many thousands with the slow ones.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from shard_tools import encoded, make_sample, write_samples
from toy import REPOSITORY
from view_layouts import example, framed

from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.sample import decode_sample, encode_sample, split_members
from drwr_dist.errors import DrwrError
from drwr_dist.point_cloud import read_ply, write_ply
from drwr_dist.sources.colmap import read_colmap
from drwr_dist.sources.manifest import read_manifest
from drwr_dist.sources.mat import read_mat
from drwr_dist.sources.pictures import read_picture
from drwr_dist.sources.released_splits import read_lists
from drwr_dist.sources.splits import read_splits
from drwr_dist.sources.tfrecord_file import check_record, parse_example, read_records
from drwr_dist.sources.transforms import read_transforms
from drwr_dist.tf_checkpoint import open_checkpoint

SECONDS, MEBIBYTES = 5.0, 600  # CPU time of one example; growth of this process over all of them

# Values that a field may hold in a file that somebody else has written.
NASTY: list[Any] = [
    None, True, -1, 0, 2**63, 10**400, -(10**400), 1e308, float("nan"), float("inf"), "", "\0", "../../etc/passwd",
    "x" * 5000, "\ud800", [], {}, [[]], [None] * 3, {"": {}}, [[1.0] * 4] * 4,
]  # fmt: skip


@dataclass
class Reader:
    """A reader, and a valid file for it."""

    file: str  # its name in a folder of its own
    valid: Callable[[Path], bytes]  # may put other files beside it
    read: Callable[[Path], object]  # of the folder


# --- what a valid file looks like -------------------------------------------------------------------------------


def tar_of_a_sample(folder: Path) -> bytes:
    index = write_samples(folder / "data", [encoded(make_sample())])
    return read_sample(index, 0, 0)


def index_of_a_dataset(folder: Path) -> bytes:
    write_samples(folder / "data", [encoded(make_sample(f"ball/{i}")) for i in range(3)])
    return (folder / "data/index.json").read_bytes()


def mat_file(folder: Path) -> bytes:
    content = io.BytesIO()
    scipy.io.savemat(content, {"points": np.eye(3), "more": np.arange(4)}, do_compression=True)
    return content.getvalue()


def records(folder: Path) -> bytes:
    one = example({"name": "a", "image": np.ones(12), "label": [1, 2]})
    return framed(one) + framed(one)


def transforms(folder: Path) -> bytes:
    (folder / "images").mkdir()
    Image.new("RGBA", (8, 6)).save(folder / "images/0.png")
    frame = {"file_path": "images/0", "transform_matrix": np.eye(4).tolist(), "mask_path": "images/0.png"}
    lens = {"w": 8, "h": 6, "fl_x": 9.0, "fl_y": 9.0, "cx": 4.0, "cy": 3.0, "k1": 0.01}
    return json.dumps({**lens, "camera_angle_x": 0.8, "frames": [frame, frame]}).encode()


def colmap_images(folder: Path) -> bytes:
    (folder / "images").mkdir()
    Image.new("RGBA", (8, 6)).save(folder / "images/0.png")
    (folder / "cameras.txt").write_text("1 PINHOLE 8 6 9.0 9.0 4.0 3.0\n")
    return b"# images\n1 1 0 0 0 0.5 0.1 2.0 1 0.png\n\n2 1 0 0 0 0.5 0.1 2.0 1 0.png\n1 2 3\n"


def colmap_cameras(folder: Path) -> bytes:
    (folder / "images.txt").write_bytes(colmap_images(folder))
    return b"# cameras\n1 PINHOLE 8 6 9.0 9.0 4.0 3.0\n2 OPENCV 8 6 9 9 4 3 0.1 0 0 0\n"


def picture(folder: Path) -> bytes:
    content = io.BytesIO()
    Image.new("RGBA", (9, 7), (1, 2, 3, 200)).save(content, "PNG")
    return content.getvalue()


def cloud(folder: Path) -> bytes:
    write_ply(folder / "cloud.ply", np.eye(3))
    return (folder / "cloud.ply").read_bytes()


def checkpoint_index(folder: Path) -> bytes:
    source = REPOSITORY / "tests/tf_checkpoint"
    (folder / "model-7.data-00000-of-00001").write_bytes((source / "model-7.data-00000-of-00001").read_bytes())
    return (source / "model-7.index").read_bytes()


# --- reading ----------------------------------------------------------------------------------------------------


def read_tar(folder: Path) -> None:
    members = split_members((folder / "sample.tar").read_bytes(), shard="train-000000.tar")
    decode_sample(members, key="ball/a", shard="train-000000.tar", with_points=True)


def read_member(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        members = {**encode_sample(make_sample()), name: (folder / name).read_bytes()}
        return decode_sample(members, key="ball/a", shard="train-000000.tar", with_points=True)

    return read


def member(name: str) -> Reader:
    return Reader(name, lambda folder: encode_sample(make_sample())[name], read_member(name))


def read_all_records(folder: Path) -> None:
    for record, stored in read_records(folder / "a.tfrecords", max_bytes=2**20):
        check_record(record, stored)
        parse_example(record)


def read_checkpoint(folder: Path) -> None:
    found = open_checkpoint(str(folder / "model-7"))
    for name in found.variables:
        found.read(name)


READERS = {
    "tar": Reader("sample.tar", tar_of_a_sample, read_tar),
    "cameras.json": member("cameras.json"),
    "meta.json": member("meta.json"),
    "points.npy": member("points.npy"),
    "mask.png": member("00.mask.png"),
    "index": Reader("index.json", index_of_a_dataset, lambda folder: load_index(str(folder))),
    "mat": Reader("a.mat", mat_file, lambda folder: read_mat(folder / "a.mat", "points", max_values=10_000)),
    "tfrecord": Reader("a.tfrecords", records, read_all_records),
    "tfrecord.gz": Reader("a.tfrecords", lambda folder: gzip.compress(records(folder)), read_all_records),
    "example": Reader(
        "example",
        lambda folder: example({"name": "a", "image": np.ones(12)}),
        lambda folder: parse_example((folder / "example").read_bytes()),
    ),
    "transforms.json": Reader("transforms.json", transforms, lambda folder: read_transforms(folder, folder)),
    "colmap images": Reader("images.txt", colmap_images, lambda folder: read_colmap(folder, folder, folder)),
    "colmap cameras": Reader("cameras.txt", colmap_cameras, lambda folder: read_colmap(folder, folder, folder)),
    "picture": Reader("a.png", picture, lambda folder: read_picture(folder / "a.png")),
    "ply": Reader("a.ply", cloud, lambda folder: read_ply(folder / "a.ply")),
    "tf checkpoint": Reader("model-7.index", checkpoint_index, read_checkpoint),
    "splits": Reader(
        "splits.json",
        lambda folder: b'{"ball/a": "train", "ball/b": "test"}',
        lambda folder: read_splits(str(folder / "splits.json"), {"ball/a": "a", "ball/b": "b"}),
    ),
    "split table": Reader(
        "chair.file",
        lambda folder: b"3\n1\n1\n2\n5\ntrain\n3\n2\n1\n1\n1\n2\n3\nabc\n",
        lambda folder: read_lists([folder], "chair"),
    ),
    "manifest": Reader(
        "m.csv",
        lambda folder: (REPOSITORY / "shards/open_shapes/manifest.csv").read_bytes()[:2000],
        lambda folder: read_manifest(str(folder / "m.csv")),
    ),
}  # fmt: skip


# --- damage -----------------------------------------------------------------------------------------------------


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A few bytes of the content changed, removed, put in or doubled, or its end cut off."""
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(out) - 1)))
        length = draw(st.sampled_from([1, 1, 2, 8, 100]))
        kind = draw(st.sampled_from(["change", "remove", "insert", "double", "cut", "ones"]))
        if kind == "change" and out:
            out[place] ^= draw(st.integers(1, 255))
        elif kind == "ones":
            out[place : place + length] = b"\xff" * len(out[place : place + length])
        elif kind == "remove":
            del out[place : place + length]
        elif kind == "insert":
            out[place:place] = draw(st.binary(max_size=length))
        elif kind == "double":
            out[place:place] = out[place : place + length]
        elif kind == "cut":
            del out[place:]
    return bytes(out)


def places(value: Any) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a JSON value, its own included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(), *((key, *path) for key, child in inner for path in places(child))]


@st.composite
def unexpected(draw: st.DrawFn, content: bytes) -> bytes:
    """JSON with a value somewhere that nobody expects there, or a field that is gone."""
    value = json.loads(content)
    kind = draw(st.sampled_from(["value", "value", "value", "gone"]))
    for _ in range(draw(st.integers(1, 2))):
        value = copy.deepcopy(value)
        path = draw(st.sampled_from(places(value)))
        if not path:
            value = draw(st.sampled_from(NASTY))
            break
        holder = value
        for key in path[:-1]:
            holder = holder[key]
        if kind == "gone":
            del holder[path[-1]]
        else:
            holder[path[-1]] = draw(st.sampled_from(NASTY))
    return json.dumps(value).encode()


def run(reader: Reader, folder: Path, files: st.SearchStrategy[bytes], examples: int) -> None:
    """Read many files; anything but a result or our own error is a finding."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(files)
    def check(content: bytes) -> None:
        (folder / reader.file).write_bytes(content)
        begin = time.process_time()
        try:
            reader.read(folder)
        except DrwrError as error:
            assert str(error).strip()
        assert time.process_time() - begin < SECONDS

    check()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEBIBYTES, f"memory grew by {grown:.0f} MiB"


@pytest.mark.parametrize("examples", [25, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", READERS)
def test_readers_survive_whatever_lies_there(name: str, examples: int, tmp_path: Path):
    reader = READERS[name]
    content = reader.valid(tmp_path)
    (tmp_path / reader.file).write_bytes(content)
    reader.read(tmp_path)  # it is valid
    run(reader, tmp_path, damaged(content), examples)
    run(reader, tmp_path, st.binary(max_size=400), examples // 2)
    if reader.file.endswith(".json"):
        run(reader, tmp_path, unexpected(content), 4 * examples)


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.file.endswith(".json")])
def test_nesting_without_an_end_is_refused(name: str, tmp_path: Path):
    reader = READERS[name]
    (tmp_path / reader.file).write_bytes(b'{"frames": ' + b"[" * 100_000)
    with pytest.raises(DrwrError, match="JSON"):
        reader.read(tmp_path)
