"""The pairwise repulsion of one view, in three forms that agree: every pair, a cosine series, and a grid.

    R = 1/n² Σ_ij s_i exp(b_i) K_ij s_j,    K_ij = exp(-|p_i - p_j|² / h)

over the points of the view, i = j included. `plain` says just that, in N × N memory. `fourier` and `gridded` are
linear in N; the one is as exact as float64 and runs anywhere, the other is the quicker one on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drwr_dist.losses.repulsion_by_grid import nodes, repulsion_gridded
from drwr_dist.losses.repulsion_by_series import repulsion_fourier

METHODS = ("auto", "plain", "fourier", "gridded")
_FEW_POINTS = 128  # up to here, N × N memory is nothing, and the plain form is as fast
_MOST_NODES = 320  # beyond (a very narrow Gaussian), the grid costs more than the series


def repulsion(
    coordinates: Tensor,  # [L, N, 2]
    weights: Tensor,  # [L, N]
    bias: Tensor | None,  # [L, N]
    bandwidth: float,
    span: float,
    method: str = "auto",
) -> Tensor:
    """Return Σ_ij s_i exp(b_i) K_ij s_j of each view, not yet divided by n².

    Args:
        coordinates: [L, N, 2] pixels, finite. A point to be left out has weight 0, at any place within the
            span.
        weights: [L, N], s.
        bias: [L, N], b; None: 0 everywhere, for half the work.
        bandwidth: h, pixels².
        span: pixels, the largest difference of two coordinates on either axis (all but plain rely on it).
        method: auto | plain | fourier | gridded; auto takes plain for few points only, gridded for float32 on the CPU.

    Returns:
        [L].

    Raises:
        ValueError: a method of another name; gridded with another dtype or device.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    form = _best(coordinates, bandwidth, span) if method == "auto" else method
    if form == "plain":
        return repulsion_plain(coordinates, weights, bias, bandwidth)
    linear = repulsion_gridded if form == "gridded" else repulsion_fourier
    return linear(coordinates, weights, bias, bandwidth, span)


def _best(coordinates: Tensor, bandwidth: float, span: float) -> str:
    """Return the quickest form that is as exact as the dtype."""
    if coordinates.shape[1] <= _FEW_POINTS:
        return "plain"
    on_grid = coordinates.device.type == "cpu" and coordinates.dtype == torch.float32
    return "gridded" if on_grid and nodes(bandwidth, span) <= _MOST_NODES else "fourier"


def repulsion_plain(coordinates: Tensor, weights: Tensor, bias: Tensor | None, bandwidth: float) -> Tensor:
    """Return the sum over all pairs as it is written: the reference. Arguments as `repulsion`."""
    difference = coordinates[:, :, None] - coordinates[:, None]  # [L, N, N, 2]
    exponent = -difference.square().sum(-1) / bandwidth
    if bias is not None:
        exponent = exponent + bias[:, :, None]
    return (weights[:, :, None] * weights[:, None] * exponent.exp()).sum((1, 2))
