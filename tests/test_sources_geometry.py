from __future__ import annotations

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import box

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import Mesh, face_areas, geometry_hash, normalise, sample_surface, thin, wireframe


@given(
    st.tuples(*[st.floats(0.01, 100)] * 3),
    st.tuples(*[st.floats(-1000, 1000)] * 3),
    st.floats(0, 6.28),
)
@settings(max_examples=40, deadline=None)
def test_normalise_and_back(size: tuple[float, ...], at: tuple[float, float, float], angle: float):
    mesh = box(*size, at=at)
    turn = trimesh.transformations.rotation_matrix(angle, (0, 1, 0))[:3, :3]
    unit, similarity = normalise(mesh, turn)
    low, high = unit.vertices.min(axis=0), unit.vertices.max(axis=0)
    assert np.allclose(low + high, 0, atol=1e-9)
    assert np.isclose(np.linalg.norm(high - low), 1)
    again = similarity.scale * mesh.vertices @ similarity.rotation.T + similarity.translation
    assert np.allclose(again, unit.vertices, atol=1e-9)


def test_vertices_that_no_face_uses_do_not_count():
    mesh = box(1, 2, 3)
    stray = Mesh(np.vstack([mesh.vertices, [[1000, 0, 0]]]), mesh.faces)
    assert normalise(stray)[1].scale == normalise(mesh)[1].scale


def test_a_mesh_without_extent_is_refused():
    with pytest.raises(DataError, match="no extent"):
        normalise(Mesh(np.ones((3, 3)), np.array([[0, 1, 2]])))


def test_samples_lie_on_the_surface_and_follow_the_area():
    mesh = box(1.0, 2.0, 4.0)
    points = sample_surface(mesh, 20_000, np.random.default_rng(0))
    distance = np.abs(np.abs(points) / [0.5, 1.0, 2.0] - 1).min(axis=1)
    assert distance.max() < 1e-9
    share = np.isclose(np.abs(points[:, 0]), 0.5).mean()  # the two largest faces
    assert share == pytest.approx(2 * 8 / (2 * (2 + 4 + 8)), abs=0.02)
    assert face_areas(mesh).sum() == pytest.approx(28)


def test_a_mesh_without_area_is_refused():
    with pytest.raises(DataError, match="no area"):
        sample_surface(
            Mesh(np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2]])), 10, np.random.default_rng()
        )


def test_thin_keeps_one_original_point_per_voxel():
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (5000, 3))
    kept = thin(points, 0.1)
    assert len(kept) == len(np.unique(np.floor(kept / 0.1), axis=0)) == len(np.unique(np.floor(points / 0.1), axis=0))
    assert {tuple(point) for point in kept} <= {tuple(point) for point in points}


def test_copies_share_a_fingerprint():
    first = normalise(box(1, 2, 3))[0]
    order = np.random.default_rng(0).permutation(len(first.vertices))
    shuffled = Mesh(first.vertices[order], np.argsort(order)[first.faces][::-1])
    moved = normalise(box(2, 4, 6, at=(5, 0, 0)))[0]
    assert geometry_hash(first) == geometry_hash(shuffled) == geometry_hash(moved)
    assert geometry_hash(first) != geometry_hash(normalise(box(1, 2, 3.01))[0])


@pytest.mark.parametrize("spacing", [0.05, 0.3, 5.0])
def test_wireframe(spacing: float):
    mesh = box(1, 0.6, 0.2, at=(3, 0, 0))
    points = wireframe(mesh, mesh.vertices, spacing)
    assert {tuple(corner) for corner in mesh.vertices} <= {tuple(point) for point in points}
    for a, b in trimesh.Trimesh(mesh.vertices, mesh.faces).edges_unique:
        start, end = mesh.vertices[a], mesh.vertices[b]
        along = (points - start) @ (end - start) / np.linalg.norm(end - start) ** 2
        on = np.linalg.norm(points - start - along[:, None] * (end - start), axis=1) < 1e-9
        places = np.sort(along[on & (along > -1e-9) & (along < 1 + 1e-9)]) * np.linalg.norm(end - start)
        assert np.diff(places).max() <= max(spacing, places[-1] if spacing > places[-1] else 0) + 1e-9
