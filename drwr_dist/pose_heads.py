"""Cameras from the encoder's features: candidates and a student as in DPC, or beliefs about all directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from drwr_dist.camera import world_to_camera_from_quaternion
from drwr_dist.config import PoseConfig
from drwr_dist.directions import DirectionGrid
from drwr_dist.initialisers import scale_variance

LEAK = 0.2  # slope of the leaky ReLU below 0
WIDTH = 32  # of the layers that turn features into a camera


def pose_head(hidden: int, config: PoseConfig) -> PoseHeads | DirectionHead:
    """Build the head that the configuration asks for, for features [L, hidden]."""
    if config.proposals == "network":
        return PoseHeads(hidden, config.candidates)
    return DirectionHead(hidden, DirectionGrid.of(config))


class PoseHeads(nn.Module):
    """K candidates that compete, and the student that learns from the best.

    As in DPC: one dense layer, then a small network of three layers for each candidate and for the student.
    Quaternions (w, x, y, z) of any length, for `camera.world_to_camera_from_quaternion`.
    """

    def __init__(self, hidden: int, candidates: int) -> None:
        super().__init__()
        self.shared = nn.Linear(hidden, hidden)
        self.branches = nn.ModuleList(_branch(hidden, 4) for _ in range(candidates + 1))
        _initialise(self)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return `candidates` [L, K, 4] and `student` [L, 4] for features [L, hidden]."""
        x = torch.relu(self.shared(features))
        *candidates, student = (branch(x) for branch in self.branches)
        return {"candidates": torch.stack(candidates, dim=1), "student": student}

    def cameras(self, found: dict[str, Tensor]) -> Tensor:
        """Return the cameras to believe in, `world_to_camera` [L, 4, 4]: the student's."""
        return world_to_camera_from_quaternion(found["student"])


class DirectionHead(nn.Module):
    """How likely each direction of a grid is: a dense layer, then a small network of three."""

    def __init__(self, hidden: int, grid: DirectionGrid) -> None:
        super().__init__()
        self.grid = grid
        self.shared = nn.Linear(hidden, hidden)
        self.branch = _branch(hidden, len(grid))
        _initialise(self)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Return `beliefs` [L, G], logits, for features [L, hidden]."""
        return {"beliefs": self.branch(torch.relu(self.shared(features)))}

    def cameras(self, found: dict[str, Tensor]) -> Tensor:
        """Return the cameras to believe in, `world_to_camera` [L, 4, 4]."""
        return self.grid.believed_cameras(found["beliefs"])


def _branch(hidden: int, outputs: int) -> nn.Sequential:
    layers = [nn.Linear(hidden, WIDTH), nn.LeakyReLU(LEAK), nn.Linear(WIDTH, WIDTH)]
    return nn.Sequential(*layers, nn.LeakyReLU(LEAK), nn.Linear(WIDTH, outputs))


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            scale_variance(layer)
