"""Two ways to spread points that the released code holds and leaves at weight 0: by distances, and by their entropy.

    e_i = w_i · mean_j(d_ij w_j),    d_ij = |c_i - c_j|² / grid

with w the mask at a point. The sum term is -mean(e): far apart is cheap. The entropy term is the negative entropy
of e over the points: all equally far from the others is cheap. Squared distances to a weighted set of points need
only its mass, its mean and its second moment, so both are linear in the number of points.
"""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST = 1e-5  # e is at least this, in the entropy


def spread(coordinates: Tensor, weights: Tensor, valid: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return the sum term and the entropy term of each view.

    Args:
        coordinates: [L, N, 2] pixels, finite.
        weights: [L, N], the mask at the points; 0 where not valid.
        valid: [L, N], which points take part.
        grid: pixels.

    Returns:
        -mean(e) [L] and Σ p ln p [L], p = e clipped to [1e-5, grid] over its sum. 0 for a view without points.
    """
    n = valid.sum(-1, keepdim=True).clamp(min=1)
    energy = weights * _weighted_distances(coordinates, weights) / (grid * n)
    by_sum = -energy.sum(-1) / n[:, 0]
    share = torch.where(valid, energy.clamp(SMALLEST, grid), torch.zeros_like(energy))
    share = share / share.sum(-1, keepdim=True).clamp(min=SMALLEST)
    # The logarithm must not see 0, even where its factor is 0: its gradient there would be NaN.
    logarithm = torch.where(valid, share, torch.ones_like(share)).log()
    return by_sum, (share * logarithm).sum(-1)


def _weighted_distances(coordinates: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_j w_j |c_i - c_j|² [L, N]."""
    # About the centre of the points, so that little cancels.
    centred = coordinates - coordinates.detach().mean(1, keepdim=True)
    squared = centred.square().sum(-1)
    mass = weights.sum(-1, keepdim=True)
    first = (weights[..., None] * centred).sum(1, keepdim=True)
    second = (weights * squared).sum(-1, keepdim=True)
    return squared * mass - 2 * (centred * first).sum(-1) + second
