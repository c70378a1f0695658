"""Directions to look from: cells of azimuth × elevation around an upright object, and what is believed of them.

Photographs are taken upright, from all around, between a lowest and a highest elevation that whoever took them
knows. That leaves two angles of a camera instead of three, few enough to try them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drwr_dist.camera import world_to_camera_from_angles
from drwr_dist.config import PoseConfig

_REACH = 2  # cells beside the most likely azimuth that have a say in where exactly it is


@dataclass(frozen=True)
class DirectionGrid:
    """Cells of equal angles; cell (elevation i, azimuth j) has the number i · azimuths + j."""

    azimuths: int  # cells in a full turn
    elevations: int  # cells from the lowest to the highest elevation
    lowest: float  # degrees
    highest: float  # degrees

    @classmethod
    def of(cls, config: PoseConfig) -> DirectionGrid:
        """Return the grid that the configuration asks for."""
        return cls(config.azimuths, config.elevations, *config.elevation)

    def __len__(self) -> int:
        return self.azimuths * self.elevations

    def cameras(self, places: Tensor) -> Tensor:
        """Return one camera of each cell, at distance 2, looking at the origin.

        Args:
            places: [G, 2], where in its cell a camera stands: azimuth and elevation in [0, 1], ½ is the middle.

        Returns:
            [G, 4, 4], `world_to_camera`.
        """
        cell = torch.arange(len(self), device=places.device)
        azimuth = (cell % self.azimuths + places[:, 0]) * (2 * math.pi / self.azimuths)
        height = (cell // self.azimuths + places[:, 1]) / self.elevations
        return world_to_camera_from_angles(azimuth, torch.deg2rad(self.lowest + height * (self.highest - self.lowest)))

    def drawn_cameras(self, numbers: Tensor) -> Tensor:
        """Return cameras [..., 4, 4] for numbers [..., 2] in [0, 1): all azimuths and elevations are alike likely."""
        elevation = self.lowest + numbers[..., 1] * (self.highest - self.lowest)
        return world_to_camera_from_angles(numbers[..., 0] * (2 * math.pi), torch.deg2rad(elevation))

    def believed_cameras(self, logits: Tensor) -> Tensor:
        """Return the one camera to believe in.

        The azimuth is that around which most of the probability lies, averaged over the cells beside it; a mean over
        all would fall between front and back where the two are alike. The elevation is the mean.

        Args:
            logits: [..., G], of the cells' probabilities.

        Returns:
            [..., 4, 4], `world_to_camera`.
        """
        share = logits.softmax(-1).view(*logits.shape[:-1], self.elevations, self.azimuths)
        of_azimuth, of_elevation = share.sum(-2), share.sum(-1)
        near = of_azimuth + (of_azimuth.roll(1, -1) + of_azimuth.roll(-1, -1)) / 2
        peak = near.argmax(-1, keepdim=True)
        cell = torch.arange(self.azimuths, device=logits.device)
        half = self.azimuths // 2
        offset = (cell - peak + half) % self.azimuths - half  # the short way round
        weight = of_azimuth * (offset.abs() <= _REACH)
        azimuth = peak[..., 0] + 0.5 + (weight * offset).sum(-1) / weight.sum(-1)
        middles = (torch.arange(self.elevations, device=logits.device) + 0.5) / self.elevations
        elevation = self.lowest + (of_elevation * middles).sum(-1) * (self.highest - self.lowest)
        return world_to_camera_from_angles(azimuth * (2 * math.pi / self.azimuths), torch.deg2rad(elevation))


def places_in_cells(count: int, stream: int, seed: int, step: int) -> Tensor:
    """Return where in its cell each of `count` cameras stands at a step: float64 [count, 2] in [0, 1)."""
    return torch.from_numpy(np.random.default_rng((seed, stream, step)).random((count, 2)))
