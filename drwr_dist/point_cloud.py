"""Point clouds on disk: binary PLY and NPZ, written atomically."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray

from drwr_dist.errors import DataError


def write_ply(path: Path, points: NDArray[np.floating]) -> None:
    """Write points [N, 3] as a binary little-endian PLY of float32 vertices."""
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
    count = next((int(line.split()[2]) for line in header.splitlines() if line.startswith(b"element vertex")), -1)
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


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    partial.replace(path)
