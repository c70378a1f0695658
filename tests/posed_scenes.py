"""Photographs of a known scene through a bent lens, ray-traced, and their NeRF folder: for the tests of `posed`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from view_layouts import lopsided, to_json

from drwr_dist.sources.geometry import Mesh, sample_surface
from drwr_dist.sources.lens import Lens
from drwr_dist.sources.rendering import GREY

BENT = Lens(200, 150, 190.0, 186.0, 104.0, 71.0, k1=-0.12, k2=0.03, p1=0.002, p2=-0.003)
STRAIGHT = Lens(200, 150, 190.0, 190.0, 100.0, 75.0)


@dataclass
class Scene:
    """A mesh somewhere in a Z-up world, and photographs of it in which it is never quite in the middle."""

    mesh: Mesh  # in the source's frame
    cameras: np.ndarray  # [V, 4, 4] world to OpenCV camera
    lens: Lens
    points: np.ndarray  # [M, 3] on its surface, source frame


def scene(seed: int, views: int = 8, lens: Lens = BENT) -> Scene:
    random = np.random.default_rng(seed)
    unit = lopsided(seed)
    size, centre = 3.0, np.array([5.0, -2.0, 1.5])  # not of diagonal 1, not at the origin
    mesh = Mesh(size * unit.vertices @ np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]]) + centre, unit.faces)
    cameras = []
    for view in range(views):
        azimuth, height = 2 * np.pi * (view + random.uniform(0, 0.6)) / views, np.deg2rad(random.uniform(-20, 55))
        outward = np.array([np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)])
        place = centre + random.uniform(5.5, 8.0) * outward
        forward = centre + random.uniform(-0.35, 0.35, 3) - place
        forward /= np.linalg.norm(forward)
        roll = random.uniform(-0.2, 0.2)
        right = np.cross(forward, (0, 0, 1))
        right /= np.linalg.norm(right)
        right = np.cos(roll) * right + np.sin(roll) * np.cross(forward, right)
        matrix = np.eye(4)
        matrix[:3, :3] = [right, np.cross(forward, right), forward]
        matrix[:3, 3] = -matrix[:3, :3] @ place
        cameras.append(matrix)
    return Scene(mesh, np.stack(cameras), lens, sample_surface(mesh, 4000, random))


def photograph(found: Scene, view: int, fine: int = 3) -> np.ndarray:
    """Take the photograph of a view once, however many tests look at it."""
    key = found.cameras[view].tobytes(), found.lens, fine
    if key not in _TAKEN:
        _TAKEN[key] = trace(found, view, fine)
    return _TAKEN[key]


_TAKEN: dict[tuple[bytes, Lens, int], np.ndarray] = {}


def trace(found: Scene, view: int, fine: int) -> np.ndarray:
    """Ray-trace RGBA [H, W, 4] through the bent lens; OpenCV, not our code, says which direction a pixel sees."""
    from embreex import rtcore_scene
    from embreex.mesh_construction import TriangleMesh

    lens, matrix = found.lens, found.cameras[view]
    tracer = rtcore_scene.EmbreeScene(robust=True)
    TriangleMesh(tracer, found.mesh.vertices.astype(np.float32), found.mesh.faces.astype(np.int32))
    x = (np.arange(lens.width * fine) + 0.5) / fine - 0.5  # OpenCV centres pixels at whole numbers
    y = (np.arange(lens.height * fine) + 0.5) / fine - 0.5
    pixels = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 1, 2)
    intrinsics = np.array([[lens.fx, 0, lens.cx - 0.5], [0, lens.fy, lens.cy - 0.5], [0, 0, 1]])
    bends = np.array([lens.k1, lens.k2, lens.p1, lens.p2, lens.k3])
    criteria = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-9)
    directions = cv2.undistortPoints(pixels, intrinsics, bends, criteria=criteria)[:, 0]
    rays = np.concatenate([directions, np.ones((len(directions), 1))], axis=1) @ matrix[:3, :3]
    origin = np.broadcast_to(-matrix[:3, :3].T @ matrix[:3, 3], rays.shape)
    hit = np.asarray(tracer.run(origin.astype(np.float32), rays.astype(np.float32))) >= 0
    alpha = hit.reshape(lens.height, fine, lens.width, fine).mean(axis=(1, 3))
    rgba = np.zeros((lens.height, lens.width, 4), np.uint8)
    rgba[..., :3] = np.where(alpha[..., None] > 0, GREY, (255, 0, 0))
    rgba[..., 3] = np.rint(255 * alpha)
    return rgba


OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])


def write_transforms(folder: Path, found: Scene, **top: object) -> Path:
    """Write an object as NeRF data: images with alpha, no suffix in file_path."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for view, matrix in enumerate(found.cameras):
        Image.fromarray(photograph(found, view)).save(folder / f"images/{view:04d}.png")
        pose = (np.linalg.inv(matrix) @ OPENGL).tolist()
        frames.append({"file_path": f"./images/{view:04d}", "transform_matrix": pose})
    lens = found.lens
    intrinsics = {
        "w": lens.width, "h": lens.height, "fl_x": lens.fx, "fl_y": lens.fy, "cx": lens.cx, "cy": lens.cy,
        "k1": lens.k1, "k2": lens.k2, "p1": lens.p1, "p2": lens.p2,
    }  # fmt: skip
    to_json(folder / "transforms.json", {**intrinsics, **top, "frames": frames})
    return folder


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    content = json.loads((folder / "transforms.json").read_text())
    edit(content)
    to_json(folder / "transforms.json", content)


def in_unit_cube(points: np.ndarray, meta: dict) -> np.ndarray:
    similarity = meta["similarity"]
    return similarity["scale"] * points @ np.array(similarity["rotation"]).T + similarity["translation"]


def to_source(points: np.ndarray, meta: dict) -> np.ndarray:
    similarity = meta["similarity"]
    return (points - similarity["translation"]) @ np.array(similarity["rotation"]) / similarity["scale"]


def split_alpha(folder: Path, place: Callable[[Path], Path]) -> None:
    """Turn the images' alpha into mask files of their own."""
    for path in sorted((folder / "images").iterdir()):
        rgba = np.asarray(Image.open(path))
        Image.fromarray(rgba[..., :3]).save(path)
        place(path).parent.mkdir(exist_ok=True)
        Image.fromarray(rgba[..., 3]).save(place(path))
