"""Files that are small, and would become large or slow: each is refused, or done with, quickly and in little memory."""

from __future__ import annotations

import io
import json
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from shard_tools import make_sample

from drwr_dist.data.sample import decode_sample, encode_sample
from drwr_dist.errors import DataError
from drwr_dist.sources.loading import MeshLimits, load_mesh
from drwr_dist.sources.obj import ear_clip

MANY = 2_000_000_000
TRIANGLE = struct.pack("<9f", 0, 0, 0, 1, 0, 0, 0, 1, 0)
PLY = (
    "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\n"
    "element face {}\nproperty list uchar int vertex_indices\nend_header\n"
)


def glb(nodes: list[dict], accessor: dict, data: bytes = TRIANGLE) -> bytes:
    scene = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": nodes,
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"componentType": 5126, "type": "VEC3", **accessor}],
        "bufferViews": [{"buffer": 0, "byteLength": len(data)}],
        "buffers": [{"byteLength": len(data)}],
    }
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<II", len(text), 0x4E4F534A) + text + struct.pack("<II", len(data), 0x004E4942) + data
    return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


BOMBS = {
    "promised.ply": PLY.format("binary_little_endian", MANY, MANY).encode() + bytes(100),
    "promised-text.ply": PLY.format("ascii", MANY, MANY).encode() + b"0 0 0\n",
    "promised.stl": bytes(80) + struct.pack("<I", MANY) + bytes(100),
    "promised.off": f"OFF\n{MANY} {MANY} 0\n0 0 0\n".encode(),
    "promised.glb": glb([{"mesh": 0}], {"count": MANY, "bufferView": 0}),
    "zeros.glb": glb([{"mesh": 0}], {"count": MANY}),
    "sparse.glb": glb([{"mesh": 0}], {"count": MANY, "sparse": {"count": 1}}),
    "instances.glb": glb(
        [{"children": list(range(1, 3001))}] + [{"mesh": 0}] * 3000, {"count": 3, "bufferView": 0}
    ),
    "deep.glb": glb(
        [{"children": [number + 1]} for number in range(100_000)] + [{"mesh": 0}], {"count": 3, "bufferView": 0}
    ),
    "comb.glb": glb(
        [{"children": [number + 1, 2000 + number]} for number in range(1999)] + [{"mesh": 0}] * 2000,
        {"count": 3, "bufferView": 0},
    ),
    "polygon.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf " + b"1 2 3 " * 20_000 + b"\n",
    "fan.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\n" + b"f 1 2 3\n" * 20_000,
}  # fmt: skip

LOAD = """
import resource, sys
from pathlib import Path
from drwr_dist.errors import DataError
from drwr_dist.sources.loading import MeshLimits, load_mesh
import trimesh
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[1:]:
    try:
        load_mesh(Path(name), MeshLimits(faces=1000))
        print(name, "was read")
    except DataError as error:
        assert str(error).startswith(name), error
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


def test_meshes(tmp_path: Path):
    """All in one process with 4 GiB of address space: a refusal each, and no memory to speak of."""
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *(str(tmp_path / name) for name in BOMBS)],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30)),
    )
    assert done.returncode == 0, done.stderr
    *read, grown = done.stdout.splitlines()
    assert read == [] and int(grown) < 200 * 1024, done.stdout  # KiB
    assert time.monotonic() - start < 60


def test_the_reason_is_said(tmp_path: Path):
    for name in ("instances.glb", "polygon.obj", "fan.obj"):
        (tmp_path / name).write_bytes(BOMBS[name])
        with pytest.raises(DataError, match=r"more than the 1000 (faces )?allowed; raise max_faces"):
            load_mesh(tmp_path / name, MeshLimits(faces=1000))
    for name in ("deep.glb", "comb.glb"):
        (tmp_path / name).write_bytes(BOMBS[name])
        with pytest.raises(DataError, match=r"the scene is too large or too deep: .* join its parts"):
            load_mesh(tmp_path / name)


def test_a_polygon_of_many_corners_ends():
    """No corner of this one is an ear; looking for one at every step would take hours."""
    start = time.process_time()
    assert len(list(ear_clip(np.tile(np.eye(3), (4000, 1))))) == 12_000 - 2
    assert time.process_time() - start < 60


def test_points_that_promise_more_than_there_is():
    members = encode_sample(make_sample())
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (10**12, 3)})
    members["points.npy"] = buffer.getvalue() + bytes(100)
    with pytest.raises(DataError, match=r"points\.npy: not a plain \.npy array \(shape \(1000000000000, 3\)"):
        decode_sample(members, key="ball/a", shard="s", with_points=True)


def test_a_png_that_promises_a_large_picture():
    """The size is judged by the header, before anything is decoded."""
    members = encode_sample(make_sample())
    header = bytearray(members["00.image.png"])
    header[16:24] = struct.pack(">II", 60_000, 60_000)
    members["00.image.png"] = bytes(header)
    with pytest.raises(DataError, match=r"00\.image\.png: wrong size: 60000 × 60000 pixels"):
        decode_sample(members, key="ball/a", shard="s")
