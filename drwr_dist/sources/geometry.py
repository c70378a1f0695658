"""Triangle meshes as plain arrays: the unit cube, surface samples, and what makes two shapes the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError

GREY = (204, 204, 204)  # RGB of a surface without a material


@dataclass(frozen=True)
class Mesh:
    """Triangles with one colour each."""

    vertices: NDArray[np.float64]  # [N, 3]
    faces: NDArray[np.int64]  # [F, 3]
    colours: NDArray[np.uint8] | None = None  # [F, 3] RGB; None: the renderer's grey


@dataclass(frozen=True)
class Similarity:
    """x' = scale · R x + t, from a source's frame into the unit cube."""

    scale: float
    rotation: NDArray[np.float64]  # [3, 3]
    translation: NDArray[np.float64]  # [3]

    def to_json(self) -> dict[str, Any]:
        """Return the form that meta.json holds."""
        return {
            "scale": self.scale,
            "rotation": self.rotation.tolist(),
            "translation": self.translation.tolist(),
        }


def normalise(mesh: Mesh, rotation: NDArray[np.float64] | None = None) -> tuple[Mesh, Similarity]:
    """Turn a mesh, centre its bounding box on the origin and scale the box's diagonal to 1.

    Args:
        mesh: in the source's frame.
        rotation: [3, 3], from the source's frame to +Y up, +X front; None: already so.

    Raises:
        DataError: the mesh has no extent.
    """
    turn = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64)
    used = mesh.vertices[np.unique(mesh.faces)] @ turn.T
    low, high = used.min(axis=0), used.max(axis=0)
    with np.errstate(over="ignore"):
        diagonal = float(np.linalg.norm(high - low))
    if not np.isfinite(diagonal):
        raise DataError("the mesh is too large: its extent overflows")
    if diagonal <= 1e-12:
        raise DataError("the mesh has no extent: all its points coincide")
    scale = 1.0 / diagonal
    similarity = Similarity(scale, turn, -scale * (low + high) / 2)
    vertices = scale * (mesh.vertices @ turn.T) + similarity.translation
    return Mesh(vertices, mesh.faces, mesh.colours), similarity


def face_areas(mesh: Mesh) -> NDArray[np.float64]:
    """Return the area of each face, [F]."""
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    return np.asarray(np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2, dtype=np.float64)


def sample_surface(mesh: Mesh, count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw points uniformly by area.

    Returns:
        [count, 3].

    Raises:
        DataError: the surface has no area.
    """
    cumulative = np.cumsum(face_areas(mesh))
    if not cumulative[-1] > 0:
        raise DataError("the mesh has no area: every face is degenerate")
    face = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    corners = mesh.vertices[mesh.faces[np.minimum(face, len(mesh.faces) - 1)]]  # [count, 3, 3]
    u, v = rng.random((2, count, 1))
    fold = u + v > 1
    u, v = np.where(fold, 1 - u, u), np.where(fold, 1 - v, v)
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    return np.asarray(a + u * (b - a) + v * (c - a), dtype=np.float64)


def thin(points: NDArray[np.float64], voxel: float) -> NDArray[np.float64]:
    """Keep the first point of each voxel of a grid, in voxel order.

    Args:
        points: [N, 3].
        voxel: side of a voxel, in the points' unit.

    Returns:
        [M, 3] with M ≤ N.
    """
    cells = np.floor(points / voxel).astype(np.int64)
    cells -= cells.min(axis=0)
    _, height, depth = cells.max(axis=0) + 1
    _, first = np.unique((cells[:, 0] * height + cells[:, 1]) * depth + cells[:, 2], return_index=True)
    return points[first]


def wireframe(mesh: Mesh, corners: NDArray[np.float64], spacing: float) -> NDArray[np.float64]:
    """Return points on the edges of a mesh, neighbours at most `spacing` apart: [N, 3].

    Args:
        mesh: its edges.
        corners: [K, 3] its vertices, those that are used; the result begins with them.
        spacing: in the mesh's unit.
    """
    a, b, count = mesh.faces.ravel(), np.roll(mesh.faces, -1, axis=1).ravel(), len(mesh.vertices)
    x, y, z = (mesh.vertices[a] - mesh.vertices[b]).T
    long = np.flatnonzero(x * x + y * y + z * z > spacing**2)
    a, b = a[long], b[long]
    pairs = np.unique(np.minimum(a, b) * count + np.maximum(a, b))  # each edge once
    start, end = mesh.vertices[pairs // count], mesh.vertices[pairs % count]
    inner = np.ceil(np.linalg.norm(end - start, axis=1) / spacing).astype(np.int64) - 1  # points between the ends
    edge = np.repeat(np.arange(len(pairs)), inner)
    place = np.arange(len(edge)) - np.repeat(np.cumsum(inner) - inner, inner) + 1
    along = (place / (inner + 1)[edge])[:, None]
    between = start[edge] + along * (end[edge] - start[edge])
    return np.concatenate([corners, between])


def geometry_hash(mesh: Mesh, step: float = 1e-4) -> str:
    """Return a fingerprint that exact copies share, whatever the order of their vertices.

    Args:
        mesh: normalised, so that a shifted or scaled copy counts as the same.
        step: vertices are rounded to this grid.
    """
    used = mesh.vertices[np.unique(mesh.faces)]
    rounded = np.unique(np.rint(used / step).astype(np.int32), axis=0)
    return hashlib.sha256(rounded.tobytes()).hexdigest()
