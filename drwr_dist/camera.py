"""Cameras: one convention, the conversions of the released sources to it, and the one projection.

- World (object) frame: the unit cube [-0.5, 0.5]³ holds the object, +Y up.
- Camera frame: OpenCV, x right, y down, z forward; X_cam = R X + t with R, t from `world_to_camera` [4, 4].
- Frame coordinates xy: widths of the image, the frame is [0, 1] × [0, 1], x right, y down, centre (0.5, 0.5).

Everything is differentiable, keeps the dtype and the device of its input, and takes any leading dimensions.
"""

from __future__ import annotations

import torch
from kornia.geometry.camera import distort_points_affine, project_points_z1
from kornia.geometry.conversions import quaternion_to_rotation_matrix
from torch import Tensor

FOCAL_LENGTH = 1.875  # widths of the image
CAMERA_DISTANCE = 2.0  # sides of the unit cube, from its centre
NEAR = 0.01  # smallest depth that is projected
PRINCIPAL_POINT = 0.5  # of the frame, both axes
_POLE = 1e-9  # cosine of the elevation below which a camera counts as straight above or below


def world_to_camera_from_quaternion(quaternion: Tensor) -> Tensor:
    """Convert the released code's camera quaternions to `world_to_camera`, at distance 2.

    The released renderer turns p' = q p q⁻¹ and reads depth = p'_x + 2, right = p'_z, up = p'_y.

    Args:
        quaternion: [..., 4], (w, x, y, z), of any length but zero; it is normalised.

    Returns:
        [..., 4, 4], OpenCV convention.

    Raises:
        ValueError: the last dimension is not 4.

    Examples:
        >>> world_to_camera_from_quaternion(torch.tensor([1.0, 0.0, 0.0, 0.0]))[:3, 3]  # at distance 2
        tensor([0., 0., 2.])
    """
    _require(quaternion, "quaternion", (4,))
    rotation = quaternion_to_rotation_matrix(quaternion)
    forward, up, right = rotation.unbind(-2)
    return _assemble(torch.stack((right, -up, forward), dim=-2), CAMERA_DISTANCE)


def world_to_camera_from_position(cam_pos: Tensor) -> Tensor:
    """Convert camera positions of the Blender renders to `world_to_camera`: the released quaternion path.

    Only the direction c = cam_pos / |cam_pos| counts; the camera stands at 2·c and looks at the origin with
    +Z of the Blender world up. Object (x, y, z) is Blender (x, -z, y), so depth = 2 - c·(x, -z, y). Written
    with the sines and cosines of the released angles (yaw π - atan2(cy, cx), pitch asin(cz)) instead of the
    angles: no precision is lost in acos and asin, and the gradient is finite everywhere. Straight above or
    below, where the yaw is undefined, the released code takes atan2 = -π/2; so does this.

    Args:
        cam_pos: [..., 3], Blender world, Z up, any length but zero.

    Returns:
        [..., 4, 4], OpenCV convention.

    Raises:
        ValueError: the last dimension is not 3, or a position is zero or not finite.

    Examples:
        >>> camera = world_to_camera_from_position(torch.tensor([0.0, -1.0, 0.0]))  # in front of the object
        >>> camera @ torch.tensor([0.1, 0.2, 0.3, 1.0])  # x stays right, up becomes -y, +z comes nearer
        tensor([ 0.1000, -0.2000,  1.7000,  1.0000])
    """
    _require(cam_pos, "cam_pos", (3,))
    length = torch.linalg.vector_norm(cam_pos, dim=-1, keepdim=True)
    if not bool(((length > 0) & torch.isfinite(length)).all()):
        raise ValueError("cam_pos must be finite and away from the origin: there the camera has no direction")
    x, y, z = (cam_pos / length).unbind(-1)
    squared = x * x + y * y
    pole = squared < _POLE**2
    # The square root must not see 0 even in the branch that is not taken: 0 · inf is NaN in the
    # backward pass.
    cosine = torch.where(pole, torch.ones_like(squared), squared).sqrt()
    zero, one = torch.zeros_like(cosine), torch.ones_like(cosine)
    azimuth_cosine, azimuth_sine = torch.where(pole, zero, x / cosine), torch.where(pole, -one, y / cosine)
    rotation = _rotation(azimuth_cosine, azimuth_sine, torch.where(pole, zero, cosine), z)
    return _assemble(rotation, CAMERA_DISTANCE)


def world_to_camera_from_angles(azimuth: Tensor, elevation: Tensor, distance: float = CAMERA_DISTANCE) -> Tensor:
    """Place cameras on a sphere around the origin, looking at it, +Y up.

    The camera stands at distance · (cos e cos a, sin e, -cos e sin a) of the object frame: where
    `world_to_camera_from_position` puts the Blender position (cos e cos a, cos e sin a, sin e).

    Args:
        azimuth: [...], radians, counter-clockwise seen from above.
        elevation: [...], radians, -π/2 … π/2.
        distance: sides of the unit cube.

    Returns:
        [..., 4, 4], OpenCV convention.

    Examples:
        >>> above = world_to_camera_from_angles(torch.tensor(0.0), torch.tensor(torch.pi / 2))
        >>> camera_at = -above[:3, :3].T @ above[:3, 3]
        >>> torch.allclose(camera_at, torch.tensor([0.0, 2.0, 0.0]), atol=1e-6)
        True
    """
    azimuth, elevation = azimuth + 0 * elevation, elevation + 0 * azimuth  # to one shape
    rotation = _rotation(azimuth.cos(), azimuth.sin(), elevation.cos(), elevation.sin())
    return _assemble(rotation, distance)


def world_to_camera_from_extrinsic(extrinsic: Tensor) -> Tensor:
    """Convert extrinsics of the Blender renders to `world_to_camera`: the released matrix path.

    The released `camera_from_blender` applies the extrinsic [R | t] (x right, y down, z forward) to (-x, z,
    y) of the object and negates t_y. Two oddities are kept, because the stored numbers depend on them: the
    object is turned by 180° about its vertical axis against `world_to_camera_from_position`, and the sign
    of t_y is wrong, which is harmless while the camera looks at the origin (t_x = t_y = 0).

    Args:
        extrinsic: [..., 4, 4] or its first three rows [..., 3, 4].

    Returns:
        [..., 4, 4], OpenCV convention.

    Raises:
        ValueError: the last two dimensions are neither 4 × 4 nor 3 × 4.

    Examples:
        >>> extrinsic = torch.eye(4)
        >>> extrinsic[2, 3] = 2.0  # a camera below the object that looks up
        >>> world_to_camera_from_extrinsic(extrinsic) @ torch.tensor([0.0, 0.5, 0.0, 1.0])
        tensor([0.0000, 0.0000, 2.5000, 1.0000])
    """
    if extrinsic.ndim < 2 or extrinsic.shape[-2:] not in ((4, 4), (3, 4)):
        raise ValueError(f"extrinsic must be [..., 4, 4] or [..., 3, 4], got {list(extrinsic.shape)}")
    rotation, translation = extrinsic[..., :3, :3], extrinsic[..., :3, 3]
    first, second, third = rotation.unbind(-1)
    tx, ty, tz = translation.unbind(-1)
    return _assemble(torch.stack((-first, third, second), dim=-1), torch.stack((tx, -ty, tz), dim=-1))


def mirrored_cameras(world_to_camera: Tensor) -> Tensor:
    """Return the cameras that see the object's mirror image, across z = 0, in the left-right flipped images.

    Flipping an image mirrors the camera frame at x = 0; W' = diag(-1, 1, 1, 1) W diag(1, 1, -1, 1) gives
    camera coordinates of (x, y, -z) that are those of (x, y, z) with X negated. Two mirrorings make W' a rotation
    again. Holds for a principal point in the middle of the frame.

    Args:
        world_to_camera: [..., 4, 4], OpenCV convention.

    Returns:
        [..., 4, 4].

    Raises:
        ValueError: the last two dimensions are not 4 × 4.

    Examples:
        >>> camera = world_to_camera_from_angles(torch.tensor(0.3), torch.tensor(0.2))
        >>> point, mirrored = torch.tensor([0.1, 0.2, 0.3, 1.0]), torch.tensor([0.1, 0.2, -0.3, 1.0])
        >>> flip = torch.tensor([-1.0, 1.0, 1.0, 1.0])
        >>> torch.allclose(mirrored_cameras(camera) @ mirrored, flip * (camera @ point))
        True
    """
    _require(world_to_camera, "world_to_camera", (4, 4))
    signs = world_to_camera.new_ones(4, 4)
    signs[0, :] *= -1
    signs[:, 2] *= -1
    return world_to_camera * signs


def project(
    points: Tensor,  # [B, N, 3]
    world_to_camera: Tensor,  # [B, 4, 4]
    focal_length: float | Tensor = FOCAL_LENGTH,
) -> tuple[Tensor, Tensor]:
    """Project points into the frame of a camera: x = f X/Z + 0.5, y = f Y/Z + 0.5, in the camera's X, Y, Z.

    The perspective division is kornia's plain one (`project_points_z1`): the variants with a small constant
    in the denominator are off by 1e-8. A point with depth ≤ 0.01, or that is not finite, has no place in
    the frame: xy is infinite, and no gradient flows from it.

    Args:
        points: [B, N, 3], object frame. More leading dimensions are welcome, they broadcast against the
            cameras'.
        world_to_camera: [B, 4, 4], OpenCV convention; the last row is not read.
        focal_length: widths of the image; a number, or a tensor [B].

    Returns:
        xy [B, N, 2], frame coordinates (y down), and depth [B, N] (NaN for a point that is not finite).

    Raises:
        ValueError: a shape does not fit.

    Examples:
        >>> camera = world_to_camera_from_position(torch.tensor([[0.0, -1.0, 0.0]]))  # in front, at distance 2
        >>> centre, top, behind = (0.0, 0.0, 0.0), (0.0, 0.5, 0.0), (0.0, 0.0, 3.0)
        >>> xy, depth = project(torch.tensor([[centre, top, behind]]), camera)
        >>> xy
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.0312],
                 [   inf,    inf]]])
        >>> depth
        tensor([[ 2.,  2., -1.]])
    """
    _require(points, "points", (-1, 3))
    _require(world_to_camera, "world_to_camera", (4, 4))
    world_to_camera = world_to_camera.to(points.dtype)
    finite = points.isfinite().all(-1)
    points = torch.where(finite[..., None], points, torch.zeros_like(points))
    # Products and sums rather than a matrix product: reduced-precision modes (autocast, TF32) leave
    # them alone.
    rotation, translation = world_to_camera[..., None, :3, :3], world_to_camera[..., None, :3, 3]
    in_camera = (points[..., None, :] * rotation).sum(-1) + translation
    depth = in_camera[..., 2]
    visible = finite & (depth > NEAR)
    # Two `where`s, before and after the division: with one alone, its backward pass would give 0 · inf = NaN.
    placeholder = in_camera.new_tensor((0.0, 0.0, 1.0))
    on_plane = project_points_z1(torch.where(visible[..., None], in_camera, placeholder))
    xy = distort_points_affine(on_plane, _intrinsics(focal_length, world_to_camera))
    xy = torch.where(visible[..., None], xy, torch.full_like(xy, torch.inf))
    return xy, torch.where(finite, depth, torch.full_like(depth, torch.nan))


def _intrinsics(focal_length: float | Tensor, world_to_camera: Tensor) -> Tensor:
    """Return kornia's [fx, fy, cx, cy] with an axis for the points: [..., 1, 4]."""
    focal = torch.as_tensor(focal_length, dtype=world_to_camera.dtype, device=world_to_camera.device)
    batch = world_to_camera.shape[:-2]
    if focal.ndim > 0 and focal.shape != batch:
        raise ValueError(f"focal_length must be a number or {list(batch)}, as the cameras are; got {list(focal.shape)}")
    centre = torch.full_like(focal, PRINCIPAL_POINT)
    return torch.stack((focal, focal, centre, centre), dim=-1).unsqueeze(-2)


def _rotation(azimuth_cosine: Tensor, azimuth_sine: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Return R [..., 3, 3] of a camera that looks at the origin, from cosines and sines of its angles."""
    zero = torch.zeros_like(cosine)
    right = torch.stack((-azimuth_sine, zero, -azimuth_cosine), dim=-1)
    up = torch.stack((-sine * azimuth_cosine, cosine, sine * azimuth_sine), dim=-1)
    forward = torch.stack((-cosine * azimuth_cosine, -sine, cosine * azimuth_sine), dim=-1)
    return torch.stack((right, -up, forward), dim=-2)


def _assemble(rotation: Tensor, translation: Tensor | float) -> Tensor:
    """Join R [..., 3, 3] and t [..., 3], or a depth for t = (0, 0, depth), to [..., 4, 4]."""
    if not isinstance(translation, Tensor):
        translation = rotation.new_tensor((0.0, 0.0, translation)).expand(rotation.shape[:-1])
    upper = torch.cat((rotation, translation.unsqueeze(-1)), dim=-1)
    last = rotation.new_tensor((0.0, 0.0, 0.0, 1.0)).expand(*rotation.shape[:-2], 1, 4)
    return torch.cat((upper, last), dim=-2)


def _require(tensor: Tensor, name: str, trailing: tuple[int, ...]) -> None:
    """Raise ValueError unless the last dimensions fit (-1: any) and the dtype is floating."""
    shape = tuple(tensor.shape)
    found = shape[-len(trailing) :]
    fits = len(found) == len(trailing) and all(e in (-1, f) for e, f in zip(trailing, found, strict=True))
    if not fits:
        expected = ", ".join("N" if size == -1 else str(size) for size in trailing)
        raise ValueError(f"{name} must be [..., {expected}], got {list(shape)}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
