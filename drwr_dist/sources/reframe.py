"""From a photograph to the package's camera model: a square around the object, principal point in its centre.

A crop around an off-centre object is not a picture that a camera with a central principal point could have taken;
a camera at the same place that is turned towards the object takes exactly the picture that the homography
K_new R K_old⁻¹ makes of the old one. Undistortion and homography are one lookup: each new pixel is a ray, turned into
the old camera and bent by its lens.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError
from drwr_dist.sources.geometry import Similarity
from drwr_dist.sources.lens import Lens, distort, reach
from drwr_dist.sources.pictures import unpremultiply

_TRAINING_DISTANCE = 2.0  # of the cameras that the network is trained with
_RADIUS = 0.5  # of the sphere around an object whose box has diagonal 1
_MAX_SUPERSAMPLE = 8
_UP = np.array([0.0, 1.0, 0.0])


def up_rotation(up: str) -> NDArray[np.float64]:
    """Return the rotation [3, 3] that turns a source's up axis (`+x` … `-z`) to +Y by the shortest way.

    For `+z`, source (x, y, z) becomes (x, z, -y), as the released renders have it.
    """
    turns = {
        "+y": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "-y": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
        "+z": [[1, 0, 0], [0, 0, 1], [0, -1, 0]],
        "-z": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        "+x": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        "-x": [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],
    }
    return np.array(turns[up], dtype=np.float64)


def to_unit_box(low: NDArray[np.float64], high: NDArray[np.float64], up: str) -> Similarity:
    """Return the similarity that takes a box [3], [3] of the source's frame to one centred on 0 with diagonal 1."""
    scale = 1.0 / float(np.linalg.norm(high - low))
    rotation = up_rotation(up)
    return Similarity(scale, rotation, -scale * rotation @ (low + high) / 2)


def turn_to_centre(
    world_to_camera: NDArray[np.float64], similarity: Similarity, focal_length: float
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """Turn a camera on the spot until it looks at the object's centre, +Y up.

    Args:
        world_to_camera: [4, 4], from the source's frame.
        similarity: from the source's frame to the object's.
        focal_length: frame widths, of a camera at distance 2; others get the one with which the sphere around the
            object appears as large.

    Returns:
        world_to_camera [4, 4] from the object's frame, its focal length in frame widths, and the rotation [3, 3] from
        the new camera's axes to the old one's.

    Raises:
        DataError: the camera stands in the sphere around the object.
    """
    rotation, translation = world_to_camera[:3, :3], world_to_camera[:3, 3]
    place = similarity.scale * similarity.rotation @ (-rotation.T @ translation) + similarity.translation
    distance = float(np.linalg.norm(place))
    if distance <= _RADIUS * 1.02:
        raise DataError("the camera stands too close: within the sphere around the object")
    old = rotation @ similarity.rotation.T
    forward = -place / distance
    right = np.cross(forward, _UP)
    if np.linalg.norm(right) < 1e-3:  # straight above or below: what was right stays right
        right = old[0] - forward * (forward @ old[0])
    right /= np.linalg.norm(right)
    turned = np.eye(4)
    turned[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    turned[2, 3] = distance
    fill = math.sqrt((distance**2 - _RADIUS**2) / (_TRAINING_DISTANCE**2 - _RADIUS**2))
    return turned, focal_length * fill, old @ turned[:3, :3].T


def warp(
    image: NDArray[np.uint8],
    alpha: NDArray[np.uint8],
    lens: Lens,
    new_to_old: NDArray[np.float64],
    focal_length: float,
    size: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Take the picture of a turned camera out of a photograph.

    Args:
        image: [H, W, 3] RGB.
        alpha: [H, W].
        lens: of the photograph.
        new_to_old: [3, 3], from the new camera's axes to the photograph's.
        focal_length: of the new camera, frame widths.
        size: pixels a side of the result.

    Returns:
        RGB [size, size, 3], not premultiplied, 0 where alpha is 0, and alpha [size, size]; both 0 where the
        photograph shows nothing.
    """
    shrink = max(lens.fx, lens.fy) / (focal_length * size)  # photograph's pixels per new pixel, in the middle
    fine = min(_MAX_SUPERSAMPLE, max(2, math.ceil(shrink)))
    pixels = _lookup(lens, new_to_old, focal_length, size * fine).astype(np.float32) - np.float32(0.5)
    opacity = alpha.astype(np.float32) / 255.0
    stacked = np.concatenate([image * opacity[..., None], opacity[..., None]], axis=-1)
    found = cv2.remap(stacked, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    mean = np.asarray(found).reshape(size, fine, size, fine, 4).mean(axis=(1, 3))
    return unpremultiply(mean[..., :3], mean[..., 3])


def _lookup(lens: Lens, new_to_old: NDArray[np.float64], focal_length: float, size: int) -> NDArray[np.float64]:
    """Return the photograph's pixel coordinates [size, size, 2] of each new pixel; far outside where there is none."""
    centre = ((np.arange(size) + 0.5) / size - 0.5) / focal_length
    x, y = np.meshgrid(centre, centre, indexing="xy")
    rays = np.stack([x, y, np.ones_like(x)], axis=-1) @ new_to_old.T
    ahead = rays[..., 2] > 1e-6
    directions = rays[..., :2] / np.where(ahead, rays[..., 2], 1.0)[..., None]
    shown = ahead & (np.linalg.norm(directions, axis=-1) <= 1.01 * reach(lens))
    pixels = distort(lens, np.where(shown[..., None], directions, 0.0))
    return np.where(shown[..., None], pixels, -1e4)
