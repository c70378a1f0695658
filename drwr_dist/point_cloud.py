"""Point clouds on disk: PLY, OBJ, GLB, NPZ, CSV and MAT files, written atomically."""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray

from drwr_dist.errors import DataError


def write_ply(path: Path, points: NDArray[np.floating]) -> None:
    """Write points as a binary little-endian PLY of float32 vertices; the file appears whole or not at all.

    Args:
        path: of the file; folders above it are made.
        points: [N, 3], floating, object frame.

    Raises:
        OSError: it can't be written.

    Examples:
        >>> write_ply(Path("cloud.ply"), np.zeros((3, 3)))
        >>> read_ply(Path("cloud.ply")).shape
        (3, 3)
    """
    header = (
        "ply\nformat binary_little_endian 1.0\ncomment drwr_dist, object frame, +Y up\n"
        f"element vertex {len(points)}\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    )
    _replace(path, header.encode("ascii") + np.ascontiguousarray(points, dtype="<f4").tobytes())


def read_ply(path: Path) -> NDArray[np.float32]:
    """Read a PLY that `write_ply` wrote; return float32 [N, 3].

    Raises:
        DataError: the file is missing, cut short, or another kind of PLY.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    header, found, body = content.partition(b"end_header\n")
    declared = re.search(rb"^element vertex (\d{1,12})$", header, re.MULTILINE)
    count = int(declared[1]) if declared else -1
    if not found or b"binary_little_endian" not in header or len(body) != 12 * count:
        raise DataError(f"{path}: not a point cloud of this project (binary PLY of {count} vertices)")
    return np.frombuffer(body, dtype="<f4").reshape(-1, 3).astype(np.float32)


def write_mat(path: Path, points: NDArray[np.floating]) -> None:
    """Write predictions [V, N, 3] of one object as the released code does: float32 `points` of a MATLAB 5 file."""
    content = io.BytesIO()
    # SciPy takes an open file as well; its stubs know of paths only.
    scipy.io.savemat(content, {"points": np.asarray(points, dtype=np.float32)})  # type: ignore[arg-type]
    _replace(path, content.getvalue())


def write_npz(path: Path, points: NDArray[np.floating]) -> None:
    """Write points [N, 3] as float32 array `points` of a NumPy archive."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, points=np.asarray(points, dtype=np.float32))
    partial.replace(path)


def write_obj(path: Path, points: NDArray[np.floating]) -> None:
    """Write points [N, 3] as vertices and point elements of a Wavefront OBJ."""
    lines = ["# drwr_dist, object frame, +Y up", *(f"v {x:.7g} {y:.7g} {z:.7g}" for x, y, z in points)]
    lines += [f"p {number}" for number in range(1, len(points) + 1)]
    _replace(path, ("\n".join(lines) + "\n").encode("ascii"))


def write_csv(path: Path, points: NDArray[np.floating]) -> None:
    """Write points [N, 3] as comma-separated values under the heading x,y,z."""
    lines = ["x,y,z", *(f"{x:.7g},{y:.7g},{z:.7g}" for x, y, z in points)]
    _replace(path, ("\n".join(lines) + "\n").encode("ascii"))


def write_glb(path: Path, points: NDArray[np.floating]) -> None:
    """Write points [N, 3] as a binary glTF 2.0 with one primitive of points (+Y is up there too)."""
    vertices = np.ascontiguousarray(points, dtype="<f4")
    positions = {"bufferView": 0, "componentType": 5126, "count": len(vertices), "type": "VEC3"}
    bounds = {"min": vertices.min(axis=0).tolist(), "max": vertices.max(axis=0).tolist()}
    content = {
        "asset": {"version": "2.0", "generator": "drwr_dist"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "mode": 0}]}],
        "accessors": [positions | bounds],
        "bufferViews": [{"buffer": 0, "byteLength": vertices.nbytes}],
        "buffers": [{"byteLength": vertices.nbytes}],
    }
    text = json.dumps(content, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", vertices.nbytes, b"BIN\0") + vertices.tobytes()
    _replace(path, struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks)


# format -> writer: what `predict` offers
WRITERS: dict[str, Callable[[Path, NDArray[np.floating]], None]] = {
    "ply": write_ply,
    "obj": write_obj,
    "glb": write_glb,
    "npz": write_npz,
    "csv": write_csv,
}


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
