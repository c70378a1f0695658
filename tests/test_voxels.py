"""Voxels inside of meshes against trimesh, and of clouds against the definition and against solids."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from scipy import ndimage
from scipy.spatial import cKDTree
from shard_tools import make_sample

from drwr_dist.data import occupancy as stored
from drwr_dist.data.sample import decode_sample, encode_sample
from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import Mesh
from drwr_dist.sources.occupancy import occupancy
from drwr_dist.voxels import filled_voxels, voxel_iou

CENTRES = np.stack(np.meshgrid(*[(np.arange(32) + 0.5) / 32 - 0.5] * 3, indexing="ij"), -1).reshape(-1, 3)


def unit(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    low, high = mesh.bounds
    mesh.apply_translation(-(low + high) / 2)
    return mesh.apply_scale(1 / np.linalg.norm(high - low))


def moved(size: tuple[float, float, float], place: tuple[float, float, float]) -> trimesh.Trimesh:
    return trimesh.creation.box(size).apply_translation(place)


SOLIDS = {
    "sphere": lambda: trimesh.creation.icosphere(3),
    "block": lambda: trimesh.creation.box((1, 0.6, 0.8)),
    "ring": lambda: trimesh.creation.torus(1, 0.3),
    "plate": lambda: trimesh.creation.box((1, 0.06, 0.8)),
    "table": lambda: trimesh.util.concatenate(  # parts that overlap
        [moved((1, 0.1, 0.8), (0, 0, 0))]
        + [moved((0.1, 0.7, 0.1), (x, -0.35, z)) for x in (-0.4, 0.4) for z in (-0.3, 0.3)]
    ),
}


def voxels_of(mesh: trimesh.Trimesh) -> np.ndarray | None:
    return occupancy(Mesh(np.asarray(mesh.vertices), np.asarray(mesh.faces)), 32)


@pytest.mark.parametrize("name", SOLIDS)
def test_a_voxel_is_inside_where_trimesh_says_so(name: str):
    mesh = unit(SOLIDS[name]())
    expected = np.logical_or.reduce([part.contains(CENTRES) for part in mesh.split(only_watertight=False)])
    found = voxels_of(mesh)
    assert found is not None and np.array_equal(found.reshape(-1), expected) and expected.sum() > 500


def test_random_hulls_and_turned_shells():
    random = np.random.default_rng(0)
    for _ in range(3):
        hull = unit(trimesh.convex.convex_hull(random.normal(size=(30, 3))))
        expected = hull.contains(CENTRES)
        for faces in (hull.faces, hull.faces[:, ::-1]):  # inside out is no other shape
            found = voxels_of(trimesh.Trimesh(hull.vertices, faces, process=False))
            assert found is not None and np.array_equal(found.reshape(-1), expected)
    shell = trimesh.creation.box((0.3, 0.3, 0.3))
    shell.invert()
    hollow = voxels_of(unit(trimesh.util.concatenate([trimesh.creation.box((1, 1, 1)), shell])))
    assert hollow is not None and not hollow[16, 16, 16] and hollow[9, 16, 16]


def test_a_mesh_that_is_not_watertight_has_no_inside():
    box = unit(trimesh.creation.box((1, 1, 1)))
    assert voxels_of(trimesh.Trimesh(box.vertices, box.faces[1:], process=False)) is None
    soup = box.vertices[box.faces].reshape(-1, 3)  # each triangle with vertices of its own: the same surface
    found = voxels_of(trimesh.Trimesh(soup, np.arange(len(soup)).reshape(-1, 3), process=False))
    assert np.array_equal(found, voxels_of(box))
    leaf = np.array([[0, 1, 2], [2, 1, 0]])  # closed, but nothing is inside
    assert voxels_of(trimesh.Trimesh(box.vertices, leaf, process=False)) is None


@pytest.mark.parametrize("name", SOLIDS)
def test_points_on_a_solid_fill_it(name: str):
    """2000 points on the surface: an IoU of 0.84 to 1."""
    mesh = unit(SOLIDS[name]())
    solid = voxels_of(mesh)
    assert solid is not None
    points = np.asarray(mesh.sample(2000, seed=1))
    assert 0.82 < voxel_iou(points, solid) <= 1
    assert voxel_iou(points + 0.1, solid) < 0.7
    assert voxel_iou(points[:200], solid) < 0.6


def test_filling_is_what_it_says():
    """Against the definition in other words: distances by a k-d tree and a distance transform, on a wider grid."""
    points = np.asarray(unit(SOLIDS["table"]()).sample(1500, seed=0))
    side = np.arange(-6, 38)
    wide = np.stack(np.meshgrid(*[(side + 0.5) / 32 - 0.5] * 3, indexing="ij"), -1)
    near = cKDTree(points).query(wide.reshape(-1, 3))[0].reshape(44, 44, 44) * 32 <= 2
    kept = ndimage.distance_transform_edt(ndimage.binary_fill_holes(near)) > 2
    assert np.array_equal(filled_voxels(points), kept[6:-6, 6:-6, 6:-6])
    assert not filled_voxels(points + 3).any()
    assert voxel_iou(points + 3, np.zeros((32, 32, 32), bool)) == 1


def test_occupancy_survives_the_shard_and_damage_is_named():
    sample = make_sample()
    sample.occupancy = np.random.default_rng(0).random((16, 16, 16)) < 0.5
    members = encode_sample(sample)
    back = decode_sample(members, key=sample.key, shard="a.tar", with_points=True)
    assert np.array_equal(back.occupancy, sample.occupancy)
    assert decode_sample(members, key=sample.key, shard="a.tar").occupancy is None
    for content in (b"", members["points.npy"], members[stored.MEMBER][:-1]):
        with pytest.raises(DataError, match=rf"a\.tar: {sample.key}: occupancy\.npy"):
            decode_sample({**members, stored.MEMBER: content}, key=sample.key, shard="a.tar", with_points=True)
