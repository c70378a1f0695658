"""The baseline of unknown cameras: cameras drawn at random, with what a search knows of them and no more."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from drwr_dist.camera import world_to_camera_from_quaternion
from drwr_dist.config import PoseConfig
from drwr_dist.directions import DirectionGrid
from drwr_dist.losses.draws import POSE, random_quaternions, uniform_per_view


def random_cameras(pose: PoseConfig, keys: Sequence[str], views: int, seed: int, step: int) -> Tensor:
    """Return cameras at distance 2, float64 [len(keys), views, 4, 4], a function of (seed, step, key, place).

    Where `pose.proposals` is search, upright ones between the two elevations; else any rotation is as likely.
    """
    if pose.proposals == "network":
        return world_to_camera_from_quaternion(random_quaternions(keys, views, seed, step))
    return DirectionGrid.of(pose).drawn_cameras(uniform_per_view(keys, (views, 2), POSE, seed, step))
