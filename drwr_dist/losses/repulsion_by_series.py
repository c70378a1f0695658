"""The repulsion as a cosine series: linear in the number of points, as exact as its number of modes.

On the stretch that a coordinate difference can take, the Gaussian is a short cosine series of period P

    exp(-x² / h) ≈ Σ_k c_k cos(2πk x / P),  c_k = √(πh)/P · exp(-(πk/P)² h), twice that for k > 0

and cos(α - β) = cos α cos β + sin α sin β parts the two points of a pair. With F the [2K - 1, N] matrix of
cosines and sines of one axis, times √c_k, K s = colsum(F_x ⊙ (M F_y)), M = F_x diag(s) F_yᵀ: the sum over
all pairs went through a small matrix. Two errors, both of the order of `tolerance` of the peak: the next period
(P has a margin of √(h ln 1/tolerance)), and the modes left out. At grids 32, 64 and 128 it takes 21, 28 and
38 modes for 1e-6, and 37, 49 and 65 for 1e-15.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from drwr_dist.losses.repulsion_gradient import both_ways, in_closed_form

_WORKING_SET = 4 * 2**20  # bytes that are alive at once, small for the CPU's cache; beside the features of one view
_WORKING_SET_GPU = 512 * 2**20  # there, launching kernels costs more than memory does


def repulsion_fourier(
    coordinates: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    bandwidth: float,
    span: float,
    tolerance: float | None = None,
) -> Tensor:
    """Return the same sum through a cosine series, in time and memory linear in N. Arguments as `repulsion`.

    `tolerance` is the error of the series over the kernel's peak: by default 1e-7 in float32, 1e-15 in
    float64. The gradient is written out in closed form and computed with the value, while the features are
    at hand; it can't be differentiated again.
    """
    if tolerance is None:
        tolerance = 1e-15 if coordinates.dtype == torch.float64 else 1e-7
    modes = _Modes.of(*series(bandwidth, span, tolerance), like=coordinates)
    return in_closed_form(coordinates, weights, bias, functools.partial(_blockwise, modes=modes))


def series(bandwidth: float, span: float, tolerance: float) -> tuple[float, list[float]]:
    """Return the period P and c_0 … c_{K-1} of the cosine series of exp(-x²/h), |x| ≤ span."""
    reach = math.sqrt(math.log(1 / tolerance) * bandwidth)  # where the Gaussian has fallen to the tolerance
    period = span + reach
    modes = math.ceil(period / math.pi * reach / bandwidth)  # the first one dropped has fallen to it, too
    first = math.sqrt(math.pi * bandwidth) / period
    decay = (math.pi / period) ** 2 * bandwidth
    return period, [first * (1 if k == 0 else 2) * math.exp(-decay * k * k) for k in range(modes)]


def _blockwise(axes: Tensor, rows: Tensor, with_gradient: bool, modes: _Modes) -> tuple[Tensor, ...]:
    """Work on as many views and points at once as the working set holds. A `Form`, but for the modes."""
    views, length = _block(axes, rows.shape[1], modes)
    pieces = []
    for start in range(0, max(len(axes), 1), views):
        block = slice(start, start + views)
        pieces.append(_one_block(axes[block], rows[block], modes, length, with_gradient))
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


class _Modes(NamedTuple):
    """The K modes of the series: cosines 0 … K-1, then sines 1 … K-1."""

    omega: Tensor  # [K, 1], frequencies
    scale: Tensor  # [2K - 1, 1], √c_k of each feature
    turn: Tensor  # [2K - 2, 1], factors that make the derivatives of features 1 … out of sines, then cosines

    @classmethod
    def of(cls, period: float, coefficients: list[float], like: Tensor) -> _Modes:
        omega = torch.arange(len(coefficients), dtype=like.dtype) * (2 * math.pi / period)
        scale = torch.tensor(coefficients, dtype=like.dtype).sqrt()
        parts = (omega, torch.cat((scale, scale[1:])), torch.cat((-omega[1:], omega[1:])))
        return cls(*(part[:, None].to(like.device) for part in parts))


def _block(axes: Tensor, rows: int, modes: _Modes) -> tuple[int, int]:
    """Return how many views, and how many points of each, are worked on at once."""
    views, _, points = axes.shape
    room = _WORKING_SET_GPU if axes.is_cuda else _WORKING_SET
    each = len(modes.scale) * axes.element_size() * (3 + 2 * rows)  # bytes a point, in `_derivatives`
    room = max(64, room // each)
    pieces = max(1, -(-points // room))
    return max(1, min(views, room // max(points, 1))), max(1, -(-points // pieces))


def _one_block(
    axes: Tensor,  # [L, 2, N]
    rows: Tensor,  # [L, R, N]
    modes: _Modes,
    length: int,
    with_gradient: bool,
) -> tuple[Tensor, ...]:
    """Return Σ_ij a_i K_ij s_j [L] and, if asked for, its derivatives by place [L, 2, N] and K s, K a [L, R, N]."""
    parts = list(zip(torch.split(axes, length, -1), torch.split(rows, length, -1), strict=True))
    features = []
    through = axes.new_zeros(len(axes), rows.shape[1] * len(modes.scale), len(modes.scale))
    for part, weight in parts:
        x, y = _features(part[:, 0], modes), _features(part[:, 1], modes)
        through.baddbmm_((x[:, None] * weight[:, :, None]).flatten(1, 2), y.mT)
        features.append((x, y))
    through = torch.unflatten(through, 1, (rows.shape[1], -1))  # [L, R, 2K-1, 2K-1]
    value = (through[:, 0] * through[:, -1]).sum((1, 2))
    if not with_gradient:
        return (value,)
    pieces = [_derivatives(*found, weight, through, modes) for found, (_, weight) in zip(features, parts, strict=True)]
    by_place, kernel = (torch.cat(part, dim=-1) for part in zip(*pieces, strict=True))
    return value, by_place, kernel


def _features(position: Tensor, modes: _Modes) -> Tensor:
    """Return √c_k cos(ω_k x) for k = 0 …, then √c_k sin(ω_k x) for k = 1 …: [L, 2K - 1, N]."""
    angle = modes.omega * position[:, None]
    count = angle.shape[1]
    features = angle.new_empty(len(angle), 2 * count - 1, angle.shape[2])
    torch.cos(angle, out=features[:, :count])
    torch.sin(angle[:, 1:], out=features[:, count:])
    return features.mul_(modes.scale)


def _derivatives(x: Tensor, y: Tensor, weights: Tensor, through: Tensor, modes: _Modes) -> tuple[Tensor, Tensor]:
    """Return the derivatives by place [L, 2, N], and the kernel's action on each row of weights [L, R, N]."""
    rows = through.shape[1]
    beside_x = torch.unflatten(through.flatten(1, 2) @ y, 1, (rows, -1))  # [L, R, 2K-1, N]
    kernel = (x[:, None] * beside_x).sum(-2)
    along_x = (_turned(x, modes)[:, None] * beside_x[:, :, 1:]).sum(-2)
    del beside_x
    beside_y = torch.unflatten(through.mT.flatten(1, 2) @ x, 1, (rows, -1))
    along_y = (_turned(y, modes)[:, None] * beside_y[:, :, 1:]).sum(-2)
    return torch.stack((both_ways(weights, along_x), both_ways(weights, along_y)), dim=1), kernel


def _turned(features: Tensor, modes: _Modes) -> Tensor:
    """Return the derivatives of features 1 …: cosines turn to -ω sin, sines to ω cos. [L, 2K - 2, N]."""
    count = len(modes.omega)
    turned = torch.cat((features[:, count:], features[:, 1:count]), dim=1)
    return turned.mul_(modes.turn)
