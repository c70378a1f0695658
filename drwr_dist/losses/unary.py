"""The unary term: every projection should sit where the smooth silhouette is 1."""

from __future__ import annotations

import torch
from torch import Tensor

from drwr_dist.losses.sampling import bilinear_in_border

SLOPE = 2**0.5  # fall of the smooth silhouette per width of the frame, at 128 pixels


def unary_of_samples(samples: Tensor) -> Tensor:
    """Return |1 - S| [L, N] of smooth silhouettes S [L, N] read at the points: the released term."""
    return (1 - samples).abs()


def unary_in_frame(smooth: Tensor, coordinates: Tensor) -> Tensor:
    """Return our unary term: |1 - S|, continued linearly beyond the image.

    Beyond the centres of the outermost pixels the silhouette has the value of the nearest one, and √2 times
    the distance to it, in widths of the frame, is added: the slope that the smooth silhouette itself has.
    So points that leave the frame are drawn back, where the released term holds them at the border without
    a gradient.

    Args:
        smooth: [L, grid, grid], row 0 on top.
        coordinates: [L, N, 2], pixel coordinates with half-pixel centres, finite.

    Returns:
        [L, N].
    """
    grid = smooth.shape[-1]
    beyond = coordinates - coordinates.clamp(0, grid - 1)
    squared = beyond.square().sum(-1)
    outside = squared > 0
    # The root must not see 0, even where `where` drops its result: its gradient there would be NaN.
    distance = torch.where(outside, squared, torch.ones_like(squared)).sqrt() / grid
    penalty = torch.where(outside, SLOPE * distance, torch.zeros_like(distance))
    return unary_of_samples(bilinear_in_border(smooth, coordinates)) + penalty
