"""A point cloud that turns: an animated GIF."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drwr_dist.camera import world_to_camera_from_angles
from drwr_dist.gallery import draw_points

FRAMES = 36  # of a whole turn
MILLISECONDS = 80  # per frame
SIDE = 256  # pixels
ELEVATION = math.radians(25)


def write_turntable(path: Path, points: NDArray[np.floating]) -> None:
    """Draw points [N, 3] (object frame) from all around, and write the turn as an endless GIF."""
    azimuths = torch.linspace(0, 2 * math.pi, FRAMES + 1, dtype=torch.float64)[:-1]
    cameras = world_to_camera_from_angles(azimuths, torch.full_like(azimuths, ELEVATION))
    frames = [Image.fromarray(draw_points(points, camera, SIDE)) for camera in cameras]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    frames[0].save(partial, format="GIF", save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0)
    partial.replace(path)
