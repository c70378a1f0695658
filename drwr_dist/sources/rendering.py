"""Posed RGB and alpha images of a mesh, ray-traced on the CPU: no GPU, no display, no GL driver.

Cameras stand on a sphere and look at the origin. Azimuth 0 is in front of the object (+X), 90° at its right
side (+Z); elevation grows towards +Y. Frames and intrinsics are the package's own (docs/architecture.md).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drwr_dist.sources.geometry import GREY, Mesh

_AMBIENT, _SKY, _HEADLIGHT, _KEY = 0.12, 0.30, 0.33, 0.33  # weights of the lights; they add up to about 1
_KEY_DIRECTION = np.array([-0.62, -0.62, -0.48])  # in the camera frame: from the upper left, behind the camera


@dataclass(frozen=True)
class RenderSettings:
    """What each object is rendered with."""

    image_size: int = 128  # pixels a side
    views: int = 8  # views per object
    focal_length: float = 1.875  # frame widths
    distance: float = 2.0  # of the cameras from the origin, in object units
    elevation_min: float = -20.0  # degrees
    elevation_max: float = 40.0  # degrees
    supersample: int = 3  # rays per pixel and axis


def look_at_origin(
    azimuth: NDArray[np.float64], elevation: NDArray[np.float64], distance: float
) -> NDArray[np.float64]:
    """Build OpenCV cameras that look at the origin with +Y up.

    Args:
        azimuth: [V] radians; 0 in front (+X), π/2 at the right side (+Z).
        elevation: [V] radians, within (-π/2, π/2).
        distance: of the cameras from the origin.

    Returns:
        world_to_camera [V, 4, 4].
    """
    outward = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.sin(elevation), np.cos(elevation) * np.sin(azimuth)], axis=-1
    )
    forward = -outward
    right = np.cross(forward, (0.0, 1.0, 0.0))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    matrix = np.zeros((len(outward), 4, 4))
    matrix[:, :3, :3] = np.stack([right, down, forward], axis=-2)
    matrix[:, 2, 3] = distance
    matrix[:, 3, 3] = 1.0
    return matrix


def random_cameras(settings: RenderSettings, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw one camera per view, uniform in azimuth and elevation: world_to_camera [V, 4, 4]."""
    azimuth = rng.uniform(0.0, 2.0 * np.pi, settings.views)
    low, high = np.deg2rad([settings.elevation_min, settings.elevation_max])
    return look_at_origin(azimuth, rng.uniform(low, high, settings.views), settings.distance)


@functools.lru_cache(maxsize=4)
def pixel_rays(image_size: int, supersample: int, focal_length: float) -> NDArray[np.float32]:
    """Return unit directions in the camera frame, [H·s, W·s, 3], one per point of the finer grid.

    Computed once per camera model; each view only rotates them.
    """
    fine = image_size * supersample
    centre = ((np.arange(fine) + 0.5) / fine - 0.5) / focal_length
    x, y = np.meshgrid(centre, centre, indexing="xy")
    rays = np.stack([x, y, np.ones_like(x)], axis=-1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    result: NDArray[np.float32] = rays.astype(np.float32)
    result.flags.writeable = False
    return result


def render(
    mesh: Mesh, world_to_camera: NDArray[np.float64], settings: RenderSettings
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Render every view of a mesh.

    Args:
        mesh: in the unit cube, +Y up.
        world_to_camera: [V, 4, 4].
        settings: image size, focal length, rays per pixel.

    Returns:
        images [V, H, W, 3] RGB, not premultiplied, 0 where nothing is hit; masks [V, H, W], the fraction of each
        pixel's rays that hit, times 255.
    """
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    scene = rtcore_scene.EmbreeScene(robust=True)
    TriangleMesh(scene, mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))
    rays = pixel_rays(settings.image_size, settings.supersample, settings.focal_length)
    normals, albedo, used = _normals(mesh), _albedo(mesh), mesh.vertices[np.unique(mesh.faces)]
    views, side, fine = len(world_to_camera), settings.image_size, settings.supersample
    images = np.zeros((views, side, side, 3), np.uint8)
    masks = np.zeros((views, side, side), np.uint8)
    for view, matrix in enumerate(world_to_camera):
        rotation = matrix[:3, :3].astype(np.float32)
        centre = (-matrix[:3, :3].T @ matrix[:3, 3]).astype(np.float32)
        rows, columns = _window(used, matrix, settings)
        seen = rays[_times(rows, fine), _times(columns, fine)].reshape(-1, 3)
        face = np.asarray(scene.run(np.tile(centre, (len(seen), 1)), seen @ rotation))  # row vectors: ray @ R is Rᵀ ray
        hit = face >= 0
        colour = np.zeros((len(seen), 3), np.float32)
        colour[hit] = _shade(normals[face[hit]], albedo[face[hit]], seen[hit], rotation)
        image, mask = _downsample(colour, hit, columns.stop - columns.start, fine)
        images[view, rows, columns], masks[view, rows, columns] = image, mask
    return images, masks


def _window(
    vertices: NDArray[np.float64], matrix: NDArray[np.float64], settings: RenderSettings
) -> tuple[slice, slice]:
    """Return the rows and columns of pixels outside of which no ray can hit the mesh."""
    side = settings.image_size
    camera = vertices @ matrix[:3, :3].T + matrix[:3, 3]
    if camera[:, 2].min() <= 1e-3:
        return slice(0, side), slice(0, side)
    xy = (settings.focal_length * camera[:, :2] / camera[:, 2:] + 0.5) * side
    low = np.clip(np.floor(xy.min(axis=0)) - 1, 0, side - 1).astype(int)
    high = np.clip(np.ceil(xy.max(axis=0)) + 1, low + 1, side).astype(int)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _times(pixels: slice, fine: int) -> slice:
    return slice(pixels.start * fine, pixels.stop * fine)


def _normals(mesh: Mesh) -> NDArray[np.float32]:
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.where(length > 0, length, 1.0)).astype(np.float32)


def _albedo(mesh: Mesh) -> NDArray[np.float32]:
    if mesh.colours is None:
        return np.broadcast_to(np.array(GREY, np.float32) / np.float32(255), (len(mesh.faces), 3))
    return np.asarray(mesh.colours / np.float32(255), dtype=np.float32)


def _shade(
    normals: NDArray[np.float32],
    albedo: NDArray[np.float32],
    rays: NDArray[np.float32],
    rotation: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Light hits from the camera, from the upper left and from the sky; both sides of a sheet are lit.

    Args:
        normals: [K, 3] unit, object frame.
        albedo: [K, 3] in [0, 1].
        rays: [K, 3] unit, camera frame.
        rotation: [3, 3] object to camera.

    Returns:
        [K, 3] in [0, 1].
    """
    facing = np.einsum("kd,kd->k", normals @ rotation.T, rays)
    outer = np.where(facing[:, None] > 0, -normals, normals)  # turned towards the camera
    sky = 0.5 + 0.5 * outer[:, 1]
    key = np.clip(outer @ rotation.T @ _KEY_DIRECTION.astype(np.float32), 0.0, 1.0)
    light = _AMBIENT + _SKY * sky + _HEADLIGHT * np.abs(facing) + _KEY * key
    return np.asarray(np.clip(albedo * light[:, None], 0.0, 1.0), dtype=np.float32)


def _downsample(
    colour: NDArray[np.float32], hit: NDArray[np.bool_], width: int, supersample: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Average the rays of each pixel of a window `width` pixels wide: colour over the rays that hit, alpha over all."""
    shape = (-1, supersample, width, supersample)
    count = hit.reshape(shape).sum(axis=(1, 3))
    total = colour.reshape(*shape, 3).sum(axis=(1, 3))
    image = np.rint(255 * total / np.maximum(count, 1)[..., None]).astype(np.uint8)
    return image, np.rint(255 * count / supersample**2).astype(np.uint8)
