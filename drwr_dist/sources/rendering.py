"""Posed RGB and alpha images of a mesh, ray-traced on the CPU: no GPU, no display, no GL driver.

Cameras stand on a sphere and look at the origin. Azimuth 0 is in front of the object (+X), 90° at its right
side (+Z); elevation grows towards +Y. Frames and intrinsics are the package's own (docs/architecture.md).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drwr_dist.sources.adaptive import Rays, Seen, trace_adaptively
from drwr_dist.sources.geometry import GREY, Mesh, wireframe

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
    adaptive: bool = True  # all of them only where something changes from pixel to pixel, else one
    depth: bool = False  # keep how far away the surface is, too


Window = tuple[slice, slice]  # rows and columns of pixels
Shoot = Callable[[NDArray[np.float32]], Rays]


class Rendered(NamedTuple):
    """Views of one mesh."""

    images: NDArray[np.uint8]  # [V, H, W, 3] RGB, not premultiplied, 0 where nothing is hit
    masks: NDArray[np.uint8]  # [V, H, W], the fraction of each pixel's rays that hit, times 255
    depths: NDArray[np.float32] | None  # [V, H, W], camera z, mean of the rays that hit; 0 where none does


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


@functools.lru_cache(maxsize=4)
def _bundles(image_size: int, supersample: int, focal_length: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the same rays pixel by pixel: the middle one [H, W, 3], and the others [s² - 1, H, W, 3]."""
    rays = pixel_rays(image_size, supersample, focal_length)
    offsets = [(row, column) for row in range(supersample) for column in range(supersample)]
    grids = {(row, column): rays[row::supersample, column::supersample] for row, column in offsets}
    middle = np.ascontiguousarray(grids.pop((supersample // 2, supersample // 2)))
    return middle, np.stack(list(grids.values()))


def render(mesh: Mesh, world_to_camera: NDArray[np.float64], settings: RenderSettings) -> Rendered:
    """Render every view of a mesh.

    Args:
        mesh: in the unit cube, +Y up.
        world_to_camera: [V, 4, 4].
        settings: image size, focal length, rays per pixel.
    """
    shoot = _shooter(mesh, with_depth=settings.depth)
    used = mesh.vertices[np.unique(mesh.faces)]
    adaptive = settings.adaptive and settings.supersample > 1
    pixel = settings.distance / (settings.focal_length * settings.image_size)  # its size at the object's centre
    wires = wireframe(mesh, used, 2 * pixel).astype(np.float32).T.copy() if adaptive else None
    views, side = len(world_to_camera), settings.image_size
    images = np.zeros((views, side, side, 3), np.uint8)
    masks = np.zeros((views, side, side), np.uint8)
    depths = np.zeros((views, side, side), np.float32)
    for view, matrix in enumerate(world_to_camera):
        window = _window(_pixels(used, matrix, settings), side)
        trace = functools.partial(shoot, matrix)
        if wires is None:
            seen = _trace_all(trace, window, settings)
        else:
            seen = _trace_adaptively(trace, window, _marks(wires, matrix, window, settings), settings)
        images[view, *window] = np.rint(seen.colour)
        masks[view, *window] = np.rint(seen.alpha)
        if seen.depth is not None:
            depths[view, *window] = seen.depth
    return Rendered(images, masks, depths if settings.depth else None)


def _trace_adaptively(shoot: Shoot, window: Window, marks: NDArray[np.bool_], settings: RenderSettings) -> Seen:
    rows, columns = window
    middle, others = _bundles(settings.image_size, settings.supersample, settings.focal_length)
    return trace_adaptively(shoot, middle[window], others[:, rows, columns], marks)


def _trace_all(shoot: Shoot, window: Window, settings: RenderSettings) -> Seen:
    """Trace all rays of a window."""
    fine = settings.supersample
    rows, columns = (slice(pixels.start * fine, pixels.stop * fine) for pixels in window)
    rays = pixel_rays(settings.image_size, fine, settings.focal_length)[rows, columns]
    return _downsample(shoot(rays.reshape(-1, 3)), rays.shape[1], fine)


def _shooter(mesh: Mesh, with_depth: bool) -> Callable[[NDArray[np.float64], NDArray[np.float32]], Rays]:
    """Prepare a mesh; return what traces rays [K, 3] of a camera `world_to_camera` [4, 4] and lights what they hit."""
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    scene = rtcore_scene.EmbreeScene(robust=True)
    TriangleMesh(scene, mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32))
    normals, albedo = _normals(mesh), _albedo(mesh)

    def shoot(matrix: NDArray[np.float64], rays: NDArray[np.float32]) -> Rays:
        rotation = matrix[:3, :3].astype(np.float32)
        centre = (-matrix[:3, :3].T @ matrix[:3, 3]).astype(np.float32)
        # Row vectors: ray @ R is Rᵀ ray.
        answer = scene.run(np.tile(centre, (len(rays), 1)), rays @ rotation, output=1 if with_depth else None)
        face = np.asarray(answer["primID"] if with_depth else answer)
        hit = face >= 0
        found_at = np.flatnonzero(hit)
        struck = face[found_at]
        colour = np.zeros((len(rays), 3), np.float32)
        colour[found_at] = _shade(normals[struck], albedo[struck], rays[found_at], rotation)
        depth = np.where(hit, answer["tfar"] * rays[:, 2], np.float32(0)) if with_depth else None
        return Rays(colour, hit, depth)

    return shoot


def _pixels(
    points: NDArray[np.float64], matrix: NDArray[np.float64], settings: RenderSettings
) -> NDArray[np.float64] | None:
    """Return where points lie in the picture [N, 2], in pixels; None where one is not in front of the camera."""
    camera = points @ matrix[:3, :3].T + matrix[:3, 3]
    if camera[:, 2].min() <= 1e-3:
        return None
    return np.asarray((settings.focal_length * camera[:, :2] / camera[:, 2:] + 0.5) * settings.image_size)


def _marks(
    points: NDArray[np.float32], matrix: NDArray[np.float64], window: Window, settings: RenderSettings
) -> NDArray[np.bool_]:
    """Return the pixels [H, W] of a window in which points [3, N] lie; all of them where one is not in front."""
    rows, columns = window
    marks = np.zeros((rows.stop - rows.start, columns.stop - columns.start), bool)
    camera = matrix[:3, :3].astype(np.float32) @ points + matrix[:3, 3:].astype(np.float32)
    if camera[2].min() <= 1e-3:
        return ~marks
    side = np.float32(settings.image_size)
    xy = (np.float32(settings.focal_length) * camera[:2] / camera[2] + np.float32(0.5)) * side
    column = np.clip(xy[0].astype(np.int64) - columns.start, 0, marks.shape[1] - 1)
    marks[np.clip(xy[1].astype(np.int64) - rows.start, 0, marks.shape[0] - 1), column] = True
    return marks


def _window(xy: NDArray[np.float64] | None, side: int) -> Window:
    """Return the rows and columns of pixels outside of which no ray can hit a mesh with these corners."""
    if xy is None:
        return slice(0, side), slice(0, side)
    x, y = xy.T  # one by one: NumPy is slow along the short axis
    low = np.clip(np.floor([x.min(), y.min()]) - 1, 0, side - 1).astype(int)
    high = np.clip(np.ceil([x.max(), y.max()]) + 1, low + 1, side).astype(int)
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


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
    turned = normals @ rotation.T  # in the camera's frame
    facing = np.einsum("kd,kd->k", turned, rays)
    outward = np.where(facing > 0, np.float32(-1), np.float32(1))  # the sign that turns a normal towards the camera
    sky = 0.5 + 0.5 * (outward * normals[:, 1])
    key = np.clip(outward * (turned @ _KEY_DIRECTION.astype(np.float32)), 0.0, 1.0)
    light = _AMBIENT + _SKY * sky + _HEADLIGHT * np.abs(facing) + _KEY * key
    return np.asarray(np.clip(albedo * light[:, None], 0.0, 1.0), dtype=np.float32)


def _downsample(rays: Rays, width: int, supersample: int) -> Seen:
    """Average the rays of each pixel of a window that is `width` rays wide: colour over those that hit."""
    shape = (-1, supersample, width // supersample, supersample)
    count = rays.hit.reshape(shape).sum(axis=(1, 3))
    total = rays.colour.reshape(*shape, 3).sum(axis=(1, 3))
    divisor = np.maximum(count, 1)
    depth = None if rays.depth is None else rays.depth.reshape(shape).sum(axis=(1, 3)) / divisor
    return Seen(255 * total / divisor[..., None], 255 * count / supersample**2, depth)
