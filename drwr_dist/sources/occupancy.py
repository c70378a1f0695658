"""Which voxels lie inside of a watertight mesh: how often a ray passes into it and out of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from drwr_dist.sources.geometry import Mesh

_MERGE = 1e-8  # object units: vertices so near are one
_BESIDE = (3.7e-7, 6.1e-7)  # object units: rays pass beside the voxels' centres, where symmetric shapes have edges
_PAIRS = 2**20  # of a triangle and a ray, looked at together


def occupancy(mesh: Mesh, side: int) -> NDArray[np.bool_] | None:
    """Say which voxels have their centre inside of a watertight mesh.

    Inside is where a ray to the outside leaves the mesh another number of times than it enters it: parts that overlap
    are one solid, a shell with its faces turned inwards is a cavity.

    Args:
        mesh: in the unit cube [-0.5, 0.5]³.
        side: voxels a side.

    Returns:
        [side, side, side] as [x, y, z]; None where the mesh is not watertight, or too thin to hold a voxel's centre.
    """
    faces = watertight_faces(mesh)
    if faces is None:
        return None
    centres = (np.arange(side) + 0.5) / side - 0.5
    hits = np.zeros(side * side * (side + 1), dtype=np.int64)  # [x, y, number of centres below the hit]
    for ray, height, sign in _hits(mesh.vertices, faces, centres):
        place = ray * (side + 1) + np.searchsorted(centres, height)
        hits += np.bincount(place, weights=sign, minlength=len(hits)).astype(np.int64)
    above = hits.reshape(side * side, side + 1)[:, ::-1].cumsum(axis=1)[:, ::-1]  # signs of the hits above a centre
    inside: NDArray[np.bool_] = (above[:, 1:] != 0).reshape(side, side, side)
    return inside if inside.any() and not above[:, 0].any() else None


def watertight_faces(mesh: Mesh) -> NDArray[np.int64] | None:
    """Return the faces [F, 3] with coincident vertices merged, where they have no boundary; else None.

    Each edge must be passed as often in one direction as in the other, so that a count of crossings does not depend
    on the ray.
    """
    _, index = np.unique(np.rint(mesh.vertices / _MERGE).astype(np.int64), axis=0, return_inverse=True)
    first = np.full(int(index.max()) + 1, len(mesh.vertices))
    np.minimum.at(first, index.ravel(), np.arange(len(mesh.vertices)))
    faces = first[index.ravel()][mesh.faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    there, back = start * len(mesh.vertices) + end, end * len(mesh.vertices) + start
    return faces if len(faces) and np.array_equal(np.sort(there), np.sort(back)) else None


def _hits(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], centres: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]]:
    """Yield number of the ray (x · S + y), height z and sign of the side for each hit of a ray along z."""
    grid = [centres + shift for shift in _BESIDE]
    corners = vertices[faces][:, :, :2]  # [F, 3, 2]
    low, high = corners.min(axis=1), corners.max(axis=1)
    first = np.stack([np.searchsorted(grid[axis], low[:, axis]) for axis in range(2)], axis=1)
    count = np.stack([np.searchsorted(grid[axis], high[:, axis]) for axis in range(2)], axis=1) - first
    rays = count.prod(axis=1)  # whose grid place lies in the triangle's bounding box
    total = np.cumsum(rays)
    begin = 0
    while begin < len(faces):
        done = total[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(total, done + _PAIRS)))
        face = np.repeat(np.arange(begin, end), rays[begin:end])
        step = np.arange(len(face)) - np.repeat(total[begin:end] - rays[begin:end] - done, rays[begin:end])
        x, y = first[face, 0] + step // count[face, 1], first[face, 1] + step % count[face, 1]
        height, sign = _crossing(vertices, faces[face], grid[0][x], grid[1][y])
        met = sign != 0
        yield (x * len(centres) + y)[met], height[met], sign[met]
        begin = end


def _crossing(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where rays along z through (x, y) cross their triangle, and the sign of its normal's z; 0: beside it."""
    lefts = []
    for a, b in zip(faces.T, np.roll(faces, -1, axis=1).T, strict=True):
        # From the lower vertex to the higher one: both triangles of an edge round in the same way, no gap is left.
        (ax, ay, _), (bx, by, _) = vertices[np.minimum(a, b)].T, vertices[np.maximum(a, b)].T
        left = (bx - ax) * (y - ay) - (by - ay) * (x - ax) >= 0
        lefts.append(left == (a < b))
    one, two, three = lefts
    inside = (one == two) & (two == three)
    p, q, r = (vertices[corner] for corner in faces.T)
    normal = np.cross(q - p, r - p)
    inside &= normal[:, 2] != 0
    slope = normal[:, :2] / np.where(inside, normal[:, 2], 1.0)[:, None]
    height = p[:, 2] - slope[:, 0] * (x - p[:, 0]) - slope[:, 1] * (y - p[:, 1])
    return height, np.where(inside, np.sign(normal[:, 2]), 0.0)
