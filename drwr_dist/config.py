"""The typed schema of every key, and the checks that need no data.

One dataclass per owner. Each field's comment is its help text: `--help` prints it, with the type, the default
and the unit. This module imports nothing of the package, so that everything may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class LossConfig:
    """The objective: unary_weight · unary + repulsion_weight · repulsion."""

    semantics: str = "default"  # default | released: ours, or exactly the released TensorFlow code
    grid: int = 32  # pixels; side of the sampling grid, divides the image size
    unary_weight: float = 1.0  # weight of the unary term
    repulsion_weight: float = 0.02  # weight of the repulsion at the first step
    repulsion_weight_end: float | None = None  # weight at the last step, reached geometrically; none: constant
    theta: float = 5.0  # pixels² at grid 32; the Gaussian is exp(-d² / (theta · grid / 32))
    bias: float = 3.5  # constant in the exponent of the repulsion
    ring: int = 5  # radii 0 … ring-1 of the structure-aware ring mean
    method: str = "auto"  # auto | plain | fourier: how the repulsion is computed

    @classmethod
    def released(cls) -> LossConfig:
        """Return the weights and constants of the released configuration."""
        return cls(semantics="released", unary_weight=1.0, repulsion_weight=3.0, theta=5.0, bias=3.5, ring=5)


@dataclass
class ModelConfig:
    """The network from one image to points."""

    architecture: str = "released"  # released: the authors' encoder and decoder
    points: int = 2000  # points per shape
    channels: int = 16  # channels of the first convolution; doubled at each of the four halvings that follow
    hidden: int = 1024  # width of the fully connected layers
