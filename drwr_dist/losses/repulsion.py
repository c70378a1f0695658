"""The pairwise repulsion of one view, in two forms that agree: every pair, and a cosine series.

    R = 1/n² Σ_ij s_i exp(b_i) K_ij s_j,    K_ij = exp(-|p_i - p_j|² / h)

over the points of the view, i = j included. `plain` says just that, in N × N memory. `fourier` is linear in
N. On the stretch that a coordinate difference can take, the Gaussian is a short cosine series of period P

    exp(-x² / h) ≈ Σ_k c_k cos(2πk x / P),  c_k = √(πh)/P · exp(-(πk/P)² h), twice that for k > 0

and cos(α - β) = cos α cos β + sin α sin β parts the two points of a pair. With F the [N, 2K - 1] matrix of
cosines and sines of one axis, times √c_k, K s = rowsum((F_x M) ⊙ F_y), M = F_xᵀ diag(s) F_y: the sum over
all pairs went through a small matrix. Two errors, both of the order of `tolerance` of the peak: the next period
(P has a margin of √(h ln 1/tolerance)), and the modes left out. At grids 32, 64 and 128 it takes 21, 28 and
38 modes for 1e-6, and 37, 49 and 65 for 1e-15.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

METHODS = ("auto", "plain", "fourier")
_FEW_POINTS = 128  # up to here, N × N memory is nothing, and the plain form is as fast
_WORKING_SET = 6 * 2**20  # bytes that a chunk of views may take
_MATRICES = 9  # [N, 2K - 1] matrices alive at once in `_one_chunk`


def repulsion(
    coordinates: Tensor,  # [L, N, 2]
    weights: Tensor,  # [L, N]
    bias: Tensor,  # [L, N]
    bandwidth: float,
    span: float,
    method: str = "auto",
) -> Tensor:
    """Return Σ_ij s_i exp(b_i) K_ij s_j of each view, not yet divided by n².

    Args:
        coordinates: [L, N, 2] pixels, finite. A point to be left out has weight 0, at any place within the
            span.
        weights: [L, N], s.
        bias: [L, N], b.
        bandwidth: h, pixels².
        span: pixels, the largest difference of two coordinates on either axis (fourier relies on it).
        method: auto | plain | fourier; auto takes plain for few points only.

    Returns:
        [L].

    Raises:
        ValueError: a method of another name.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "plain" or (method == "auto" and coordinates.shape[1] <= _FEW_POINTS):
        return repulsion_plain(coordinates, weights, bias, bandwidth)
    return repulsion_fourier(coordinates, weights, bias, bandwidth, span)


def repulsion_plain(coordinates: Tensor, weights: Tensor, bias: Tensor, bandwidth: float) -> Tensor:
    """Return the sum over all pairs as it is written: the reference. Arguments as `repulsion`."""
    difference = coordinates[:, :, None] - coordinates[:, None]  # [L, N, N, 2]
    exponent = -difference.square().sum(-1) / bandwidth + bias[:, :, None]
    return (weights[:, :, None] * weights[:, None] * exponent.exp()).sum((1, 2))


def repulsion_fourier(
    coordinates: Tensor,
    weights: Tensor,
    bias: Tensor,
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
    arguments = (coordinates, weights, bias, bandwidth, span, tolerance)
    result: Tensor = _FourierRepulsion.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


def series(bandwidth: float, span: float, tolerance: float) -> tuple[float, list[float]]:
    """Return the period P and c_0 … c_{K-1} of the cosine series of exp(-x²/h), |x| ≤ span."""
    reach = math.sqrt(math.log(1 / tolerance) * bandwidth)  # where the Gaussian has fallen to the tolerance
    period = span + reach
    modes = math.ceil(period / math.pi * reach / bandwidth)  # the first one dropped has fallen to it, too
    first = math.sqrt(math.pi * bandwidth) / period
    decay = (math.pi / period) ** 2 * bandwidth
    return period, [first * (1 if k == 0 else 2) * math.exp(-decay * k * k) for k in range(modes)]


class _FourierRepulsion(torch.autograd.Function):
    """Values and closed-form gradients of `repulsion_fourier`; only gradients are kept for later."""

    @staticmethod
    def forward(
        ctx: Any,
        coordinates: Tensor,
        weights: Tensor,
        bias: Tensor,
        bandwidth: float,
        span: float,
        tolerance: float,
    ) -> Tensor:
        period, coefficients = series(bandwidth, span, tolerance)
        k = torch.arange(len(coefficients), dtype=coordinates.dtype, device=coordinates.device)
        omega = k * (2 * math.pi / period)
        scale = torch.tensor(coefficients, dtype=coordinates.dtype, device=coordinates.device).sqrt()
        amplified = weights * bias.exp()
        with_gradient = any(ctx.needs_input_grad[:3])
        pieces = []
        # Autocast would run the matrix products in half precision, far below the series' tolerance.
        with torch.autocast(coordinates.device.type, enabled=False):
            for views in _chunks(coordinates, 2 * len(coefficients) - 1):
                arguments = (coordinates[views], weights[views], amplified[views], omega, scale)
                pieces.append(_one_chunk(*arguments, with_gradient))
        value, *gradients = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        if with_gradient:
            per_place, per_source, per_target = gradients
            # weight s enters as a source and, times exp(b), as a target; b only through the target.
            ctx.save_for_backward(per_place, per_source + bias.exp() * per_target, amplified * per_target)
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        per_place, per_weight, per_bias = ctx.saved_tensors
        column = upstream[:, None]
        return column[..., None] * per_place, column * per_weight, column * per_bias, None, None, None


def _chunks(coordinates: Tensor, features: int) -> list[slice]:
    """Cut the views into chunks: small ones for the CPU's cache, at most about eight of them on a GPU."""
    views, points = coordinates.shape[:2]
    each = max(1, _MATRICES * points * features * coordinates.element_size())
    size = max(1, _WORKING_SET // each)
    if coordinates.is_cuda:  # launching kernels costs more there than memory does
        size = max(size, views // 8)
    return [slice(start, start + size) for start in range(0, max(views, 1), size)]


def _one_chunk(
    coordinates: Tensor,  # [L, N, 2]
    sources: Tensor,  # [L, N], s
    targets: Tensor,  # [L, N], a = s exp(b)
    omega: Tensor,  # [K]
    scale: Tensor,  # [K]
    with_gradient: bool,
) -> tuple[Tensor, ...]:
    """Return Σ_ij a_i K_ij s_j [L] and its derivatives by place [L, N, 2], by s (K a) and by a (K s) [L, N]."""
    features_x = _features(coordinates[..., 0], omega, scale)
    features_y = _features(coordinates[..., 1], omega, scale)
    through_s = (features_x * sources[..., None]).mT @ features_y  # [L, 2K-1, 2K-1]
    if not with_gradient:
        through_a = (features_x * targets[..., None]).mT @ features_y
        return ((through_s * through_a).sum((1, 2)),)
    x_s = features_x @ through_s
    kernel_s = (x_s * features_y).sum(-1)
    through_a = (features_x * targets[..., None]).mT @ features_y
    x_a = features_x @ through_a
    kernel_a = (x_a * features_y).sum(-1)
    # K is symmetric: point i moves both its row, a_i K_ij s_j, and its column, a_j K_ji s_i.
    x_s.mul_(targets[..., None]).add_(x_a.mul_(sources[..., None]))
    by_y = _along_axis(features_y, x_s, omega)
    del x_s, x_a
    y_s = (features_y @ through_s.mT).mul_(targets[..., None])
    y_s.add_((features_y @ through_a.mT).mul_(sources[..., None]))
    by_x = _along_axis(features_x, y_s, omega)
    return (targets * kernel_s).sum(-1), torch.stack((by_x, by_y), dim=-1), kernel_a, kernel_s


def _features(position: Tensor, omega: Tensor, scale: Tensor) -> Tensor:
    """Return √c_k cos(ω_k x) for k = 0 …, then √c_k sin(ω_k x) for k = 1 …: [L, N, 2K - 1]."""
    angle = position[..., None] * omega
    modes = omega.shape[0]
    features = angle.new_empty(*angle.shape[:-1], 2 * modes - 1)
    torch.mul(angle.cos(), scale, out=features[..., :modes])
    torch.mul(angle[..., 1:].sin(), scale[1:], out=features[..., modes:])
    return features


def _along_axis(features: Tensor, cofactor: Tensor, omega: Tensor) -> Tensor:
    """Return rowsum(F' ⊙ cofactor) [L, N], where F' = dF/dx: cosines turn to -ω sin, sines to ω cos."""
    modes = omega.shape[0]
    cosine, sine = features[..., 1:modes], features[..., modes:]
    turned = cosine * cofactor[..., modes:] - sine * cofactor[..., 1:modes]
    return turned @ omega[1:]
