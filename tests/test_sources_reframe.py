"""The geometry under posed photographs: the lens, the turned cameras, the visual hull."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posed_scenes import BENT

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import Similarity
from drwr_dist.sources.hull import explained, silhouette, visual_hull
from drwr_dist.sources.lens import Lens, distort, undistort
from drwr_dist.sources.reframe import to_unit_box, turn_to_centre, up_rotation


class TestLens:
    @given(st.floats(0, 200), st.floats(0, 150))
    def test_undoing_the_distortion_undoes_it(self, x: float, y: float):
        pixel = np.array([[x, y]])
        assert np.allclose(distort(BENT, undistort(BENT, pixel)), pixel, atol=1e-6)

    def test_as_opencv_has_it(self):
        directions = np.random.default_rng(0).uniform(-0.4, 0.4, (50, 2))
        points = np.concatenate([directions, np.ones((50, 1))], axis=1)
        intrinsics = np.array([[BENT.fx, 0, BENT.cx], [0, BENT.fy, BENT.cy], [0, 0, 1]])
        bends = np.array([BENT.k1, BENT.k2, BENT.p1, BENT.p2, 0.01])
        expected, _ = cv2.projectPoints(points, np.zeros(3), np.zeros(3), intrinsics, bends)
        assert np.allclose(distort(replace(BENT, k3=0.01), directions), expected[:, 0], atol=1e-9)


class TestFrames:
    @pytest.mark.parametrize("up", ["+x", "-x", "+y", "-y", "+z", "-z"])
    def test_up_becomes_plus_y(self, up: str):
        rotation = up_rotation(up)
        axis = np.zeros(3)
        axis["xyz".index(up[1])] = 1 if up[0] == "+" else -1
        assert np.allclose(rotation @ axis, [0, 1, 0])
        assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(rotation) > 0

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def test_turning_a_camera_moves_no_ray(self, seed: int):
        """A point's direction in the new camera, turned back, is its direction in the old one: the homography."""
        random = np.random.default_rng(seed)
        similarity = to_unit_box(np.array([1.0, 2, 3]), np.array([2.0, 4, 4]), "+z")
        rotation = np.linalg.qr(random.normal(size=(3, 3)))[0]
        old = np.eye(4)
        old[:3, :3] = rotation * np.sign(np.linalg.det(rotation))
        old[:3, 3] = random.normal(size=3) * 8 + 3
        try:
            new, _, back = turn_to_centre(old, similarity, 1.875)
        except DataError:
            return
        points = random.normal(size=(10, 3))
        there = similarity.scale * points @ similarity.rotation.T + similarity.translation
        seen_new = (there @ new[:3, :3].T + new[:3, 3]) @ back.T
        seen_old = points @ old[:3, :3].T + old[:3, 3]
        assert np.allclose(seen_new, similarity.scale * seen_old, atol=1e-9)

    def test_from_straight_above(self):
        old = np.eye(4)
        old[:3, :3], old[:3, 3] = np.diag([1.0, -1, -1]), (0, 0, 3)
        identity = Similarity(1.0, up_rotation("+z"), np.zeros(3))
        new, focal, _ = turn_to_centre(old, identity, 1.875)
        assert np.allclose(new[:3, 3], (0, 0, 3)) and np.isfinite(new).all() and focal > 1.875
        old[2, 3] = 0.4
        with pytest.raises(DataError, match="too close"):
            turn_to_centre(old, identity, 1.875)


class TestHull:
    def test_a_ball(self):
        """A ball seen from all around: the bounds are its own to a few percent, and never smaller."""
        centre, radius, silhouettes = np.array([1.0, -2.0, 0.5]), 0.7, []
        lens = Lens(160, 160, 200.0, 200.0, 80.0, 80.0)
        for number in range(10):
            direction = np.random.default_rng(number).normal(size=3)
            forward = direction / np.linalg.norm(direction)
            right = np.cross(forward, (0.3, 0.1, 0.9))
            right /= np.linalg.norm(right)
            matrix = np.eye(4)
            matrix[:3, :3] = [right, np.cross(forward, right), forward]
            matrix[:3, 3] = -matrix[:3, :3] @ (centre - 4 * forward)
            at = np.arange(160) + 0.5 - 80
            disc = at[:, None] ** 2 + at**2 < (200 * radius / np.sqrt(16 - radius**2)) ** 2
            silhouettes.append(silhouette(np.where(disc, 255, 0).astype(np.uint8), lens, matrix))
        hull = visual_hull(silhouettes)
        low, high = hull.low, hull.high
        assert min(explained(hull, view) for view in silhouettes) > 0.99
        assert (low <= centre - radius + 1e-9).all() and (high >= centre + radius - 1e-9).all()
        assert np.allclose(low, centre - radius, atol=0.08) and np.allclose(high, centre + radius, atol=0.08)
