"""Meshes of a line, for the tests of what is made from meshes."""

from __future__ import annotations

import numpy as np
import trimesh

from drwr_dist.sources.geometry import Mesh


def mesh_of(shape: trimesh.Trimesh) -> Mesh:
    return Mesh(np.asarray(shape.vertices, dtype=np.float64), np.asarray(shape.faces, dtype=np.int64))


def box(x: float, y: float, z: float, at: tuple[float, float, float] = (0, 0, 0)) -> Mesh:
    return mesh_of(trimesh.creation.box((x, y, z), transform=trimesh.transformations.translation_matrix(at)))
