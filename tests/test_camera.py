"""Cameras and the projection: conventions, gradients, and what has no place in the frame."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drwr_dist.camera import (
    CAMERA_DISTANCE,
    NEAR,
    mirrored_cameras,
    project,
    world_to_camera_from_angles,
    world_to_camera_from_extrinsic,
    world_to_camera_from_position,
    world_to_camera_from_quaternion,
)

F64 = torch.float64


def cameras(count: int, dtype: torch.dtype = F64) -> Tensor:
    return world_to_camera_from_position(torch.randn(count, 3, dtype=dtype))


def angles(azimuth: float, elevation: float) -> Tensor:
    return world_to_camera_from_angles(torch.tensor(azimuth, dtype=F64), torch.tensor(elevation, dtype=F64))


class TestConversions:
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    @pytest.mark.parametrize("leading", [(), (3,), (2, 3)])
    def test_shapes_and_rotations(self, leading: tuple[int, ...], dtype: torch.dtype) -> None:
        results = (
            world_to_camera_from_position(torch.randn(*leading, 3, dtype=dtype)),
            world_to_camera_from_quaternion(torch.randn(*leading, 4, dtype=dtype)),
            world_to_camera_from_angles(torch.randn(leading, dtype=dtype), torch.randn(leading, dtype=dtype)),
        )
        for result in results:
            assert result.shape == (*leading, 4, 4)
            assert result.dtype == dtype
            rotation = result[..., :3, :3]
            identity = torch.eye(3, dtype=dtype).expand_as(rotation)
            torch.testing.assert_close(rotation @ rotation.mT, identity, atol=2e-6, rtol=0)
            torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(leading, dtype=dtype))
            torch.testing.assert_close(result[..., :3, 3] * 0.5, torch.eye(3, dtype=dtype)[2].expand(*leading, 3))

    @given(
        azimuth=st.floats(-7, 7),
        elevation=st.floats(-1.57, 1.57),
        radius=st.floats(0.1, 50),
    )
    @settings(max_examples=50, deadline=None)
    def test_angles_and_positions_agree(self, azimuth: float, elevation: float, radius: float) -> None:
        a, e = torch.tensor(azimuth, dtype=F64), torch.tensor(elevation, dtype=F64)
        position = radius * torch.stack((e.cos() * a.cos(), e.cos() * a.sin(), e.sin()))
        expected = world_to_camera_from_position(position)
        torch.testing.assert_close(world_to_camera_from_angles(a, e), expected, atol=1e-9, rtol=0)

    def test_a_camera_sees_what_is_before_it(self) -> None:
        """From azimuth 0 the camera stands at +X: +Y is up, and -Z is to its right."""
        points = torch.tensor([[[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5]]], dtype=F64)
        xy, depth = project(points, angles(0, 0)[None])
        expected = torch.tensor([[0.5, 0.5], [0.5, 0.5 - 1.875 / 4], [0.5 - 1.875 / 4, 0.5]], dtype=F64)
        torch.testing.assert_close(xy[0], expected)
        torch.testing.assert_close(depth[0], torch.tensor([1.5, 2, 2], dtype=F64))

    def test_distance_of_angles(self) -> None:
        far = world_to_camera_from_angles(torch.zeros(2), torch.tensor(0.3), distance=3.0)
        assert far.shape == (2, 4, 4)
        torch.testing.assert_close(far[:, :3, 3], torch.tensor([[0, 0, 3.0]] * 2))

    def test_quaternion_scale_and_sign_do_not_count(self) -> None:
        quaternion = torch.randn(5, 4, dtype=F64)
        expected = world_to_camera_from_quaternion(quaternion)
        torch.testing.assert_close(world_to_camera_from_quaternion(-3 * quaternion), expected)

    def test_extrinsic_swaps_two_axes_and_a_sign(self) -> None:
        extrinsic = torch.randn(2, 4, 4, dtype=F64)
        result = world_to_camera_from_extrinsic(extrinsic)
        point = torch.randn(3, dtype=F64)
        turned = torch.stack((-point[0], point[2], point[1]))
        without = extrinsic[:, :3, :3] @ turned + extrinsic[:, :3, 3] * torch.tensor([1.0, -1.0, 1.0])
        torch.testing.assert_close(result[:, :3, :3] @ point + result[:, :3, 3], without)
        torch.testing.assert_close(world_to_camera_from_extrinsic(extrinsic[:, :3]), result)

    @pytest.mark.parametrize("z", [1.0, -2.5])
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_poles_have_finite_gradients(self, z: float, dtype: torch.dtype) -> None:
        position = torch.tensor([[0, 0, z], [1e-12, 0, z], [1e-5, -1e-5, z]], dtype=dtype, requires_grad=True)
        result = world_to_camera_from_position(position)
        result.square().sum().backward()
        (result * torch.randn(4, 4, dtype=dtype)).sum()
        assert position.grad is not None
        assert position.grad.isfinite().all()
        # The released code looks down a pole with yaw 3π/2: image right is Blender +X, object +X.
        torch.testing.assert_close(result[0, 0, :3].detach(), torch.tensor([1.0, 0, 0], dtype=dtype))

    @pytest.mark.parametrize(
        ("function", "shape"),
        [
            (world_to_camera_from_position, (4,)),
            (world_to_camera_from_quaternion, (2, 3)),
            (world_to_camera_from_extrinsic, (4, 3)),
        ],
    )
    def test_wrong_shapes_are_named(self, function: object, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=str(list(shape)).replace("[", r"\[")):
            function(torch.ones(shape))  # type: ignore[operator]

    @pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
    def test_positions_without_a_direction(self, value: float) -> None:
        with pytest.raises(ValueError, match="cam_pos"):
            world_to_camera_from_position(torch.full((2, 3), value))


def test_a_mirrored_object_is_a_flipped_image() -> None:
    world_to_camera, points = cameras(4), torch.rand(4, 20, 3, dtype=F64) - 0.5
    mirrored = mirrored_cameras(world_to_camera)
    xy, depth = project(points, world_to_camera)
    flipped, same_depth = project(points * torch.tensor([1, 1, -1]), mirrored)
    torch.testing.assert_close(flipped, torch.stack((1 - xy[..., 0], xy[..., 1]), dim=-1))
    torch.testing.assert_close(same_depth, depth)
    rotation = mirrored[:, :3, :3]
    torch.testing.assert_close(rotation @ rotation.mT, torch.eye(3, dtype=F64).expand(4, 3, 3))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(4, dtype=F64))
    torch.testing.assert_close(mirrored_cameras(mirrored), world_to_camera)


class TestProject:
    @pytest.mark.parametrize("dtype", [torch.float32, F64])
    def test_pinhole(self, dtype: torch.dtype) -> None:
        points, views = torch.rand(3, 7, 3, dtype=dtype) - 0.5, cameras(3, dtype)
        focal = torch.tensor([1.0, 1.875, 3.0], dtype=dtype)
        xy, depth = project(points, views, focal)
        assert xy.dtype == depth.dtype == dtype
        for b in range(3):
            for n in range(7):
                x, y, z = views[b, :3, :3] @ points[b, n] + views[b, :3, 3]
                torch.testing.assert_close(depth[b, n], z)
                torch.testing.assert_close(xy[b, n], torch.stack((x, y)) / z * focal[b] + 0.5)

    def test_the_origin_is_in_the_middle(self) -> None:
        xy, depth = project(torch.zeros(4, 1, 3), cameras(4, torch.float32))
        torch.testing.assert_close(xy, torch.full((4, 1, 2), 0.5))
        torch.testing.assert_close(depth, torch.full((4, 1), CAMERA_DISTANCE))

    def test_leading_dimensions_broadcast(self) -> None:
        points, views = torch.rand(2, 5, 3) - 0.5, cameras(6, torch.float32).view(2, 3, 4, 4)
        focal = torch.rand(2, 3) + 1
        xy, depth = project(points[:, None], views, focal)
        assert xy.shape == (2, 3, 5, 2)
        assert depth.shape == (2, 3, 5)
        single, _ = project(points, views[:, 1], focal[:, 1])
        torch.testing.assert_close(xy[:, 1], single)

    def test_gradient(self) -> None:
        points = (torch.rand(2, 4, 3, dtype=F64) - 0.5).requires_grad_()
        views = cameras(2).requires_grad_()
        focal = torch.tensor([1.5, 2.0], dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(project, (points, views, focal))

    @pytest.mark.parametrize("depth", [NEAR, 0.0, -1.0, -1e-30])
    def test_behind_the_near_plane(self, depth: float) -> None:
        """Infinite, no gradient, and no NaN in the gradients of anything else."""
        view = torch.eye(4, dtype=F64)[None].requires_grad_()
        points = torch.tensor([[[0.1, 0.2, depth], [0.1, 0.2, 1.0]]], dtype=F64, requires_grad=True)
        xy, got = project(points, view)
        assert xy[0, 0].isposinf().all()
        assert got[0, 0] == depth
        assert xy[0, 1].isfinite().all()
        gradients = torch.autograd.grad(torch.where(xy.isfinite(), xy, 0).sum(), (points, view))
        assert (gradients[0][0, 0] == 0).all()
        assert (gradients[0][0, 1] != 0).all()
        assert gradients[1].isfinite().all()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_points_that_are_not_finite(self, value: float) -> None:
        points = torch.tensor([[[value, 0.2, 0.1], [0.1, 0.2, 0.3]]], requires_grad=True)
        view = cameras(1, torch.float32).requires_grad_()
        xy, depth = project(points, view)
        assert xy[0, 0].isposinf().all()
        assert depth[0, 0].isnan()
        for gradient in torch.autograd.grad(xy[0, 1].sum(), (points, view)):
            assert gradient.isfinite().all()

    def test_reduced_precision_modes_leave_it_alone(self) -> None:
        points, views = torch.rand(1, 9, 3), cameras(1, torch.float32)
        expected, _ = project(points, views)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            xy, _ = project(points, views)
        assert xy.dtype == torch.float32
        torch.testing.assert_close(xy, expected)

    def test_wrong_shapes_are_named(self) -> None:
        view = torch.eye(4)[None]
        with pytest.raises(ValueError, match=r"points must be \[..., N, 3\], got \[1, 5, 2\]"):
            project(torch.zeros(1, 5, 2), view)
        with pytest.raises(ValueError, match=r"world_to_camera must be .*got \[1, 3, 4\]"):
            project(torch.zeros(1, 5, 3), view[:, :3])
        with pytest.raises(ValueError, match=r"focal_length must be a number or \[1\].*got \[3\]"):
            project(torch.zeros(1, 5, 3), view, torch.ones(3))
        with pytest.raises(ValueError, match="floating"):
            project(torch.zeros(1, 5, 3, dtype=torch.int64), view)
