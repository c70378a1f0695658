"""A point cloud that turns: an animated GIF, or an MP4 (H.264, by the ffmpeg that imageio-ffmpeg brings)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from drwr_dist.camera import world_to_camera_from_angles
from drwr_dist.errors import UsageError
from drwr_dist.gallery import draw_points

ELEVATION = math.radians(25)


@dataclass(frozen=True)
class Format:
    """How a turn is drawn."""

    frames: int  # of a whole turn
    milliseconds: int  # per frame
    side: int  # pixels
    radius: int  # pixels of a point


FORMATS = {"gif": Format(36, 80, 256, 1), "mp4": Format(90, 40, 512, 2)}


def write_turntable(path: Path, points: NDArray[np.floating], kind: str = "gif") -> None:
    """Draw points [N, 3] (object frame) from all around, and write the turn: a GIF is endless, an MP4 one turn.

    Raises:
        OSError: the file can't be written.
        UsageError: mp4, and imageio-ffmpeg is not installed.
    """
    form = FORMATS[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")
    partial.touch()  # a folder that can't be written says so here; an encoder's own process would only end
    if kind == "mp4":
        _write_video(partial, turn(points, form), form)
    else:
        first, *others = [Image.fromarray(frame) for frame in turn(points, form)]
        first.save(partial, format="GIF", save_all=True, append_images=others, duration=form.milliseconds, loop=0)
    partial.replace(path)


def turn(points: NDArray[np.floating], form: Format) -> Iterator[NDArray[np.uint8]]:
    """Draw points [N, 3] from all around; yields RGB [side, side, 3]."""
    azimuths = torch.linspace(0, 2 * math.pi, form.frames + 1, dtype=torch.float64)[:-1]
    for camera in world_to_camera_from_angles(azimuths, torch.full_like(azimuths, ELEVATION)):
        yield draw_points(points, camera, form.side, form.radius)


def require_encoder() -> None:
    """Raise UsageError where MP4 files can't be written."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UsageError("turntable=mp4: needs an encoder; pip install 'drwr-dist[video]', or take turntable=gif")


def _write_video(path: Path, frames: Iterator[NDArray[np.uint8]], form: Format) -> None:
    require_encoder()
    import imageio_ffmpeg

    # yuv420p and the index at the front: what every browser and player takes.
    settings = ["-crf", "23", "-preset", "veryfast", "-movflags", "+faststart"]
    size = (form.side, form.side)
    speed = 1000 / form.milliseconds
    writer = imageio_ffmpeg.write_frames(
        str(path), size, fps=speed, codec="libx264", quality=None, output_params=settings, ffmpeg_log_level="error"
    )
    try:
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()
