"""The repulsion on a grid: the quickest form on a CPU, for float32.

Every point is spread over the 6 × 6 nearest nodes of a fine grid by quintic B-splines B, the grid is convolved with a
kernel t, and what comes out is read at the points by the same splines: K s = S (T S^T s T). A Gaussian is smooth, and
the spacing of the nodes is a fraction of its width, so with

    t̂(ω) = ĝ(ω) / B̂(ω)²,   ĝ the transform of exp(-x² / h), B̂(ω) = sinc(ω / 2π)⁶

the result is the Gaussian sum to 1e-6 of its peak. Gradients are those of the interpolated sum itself, by the splines'
derivatives. The cost of a point is that of its 36 nodes, whatever the grid; that of a view is two products of
matrices as large as the grid.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drwr_dist.losses.repulsion_gradient import both_ways, in_closed_form

_TAPS = 6  # nodes a point is spread over, on each axis: the order of the spline
_NODES_PER_WIDTH = 4  # in a standard deviation of the Gaussian; 3 has four times the error in the gradient
_NEGLIGIBLE = 1e-9  # of the kernel's peak
_WORKING_SET = 6 * 2**20  # bytes that are alive at once: most of a CPU's own cache


def repulsion_gridded(
    coordinates: Tensor, weights: Tensor, bias: Tensor | None, bandwidth: float, span: float
) -> Tensor:
    """Return the sum through a fine grid, in time and memory linear in N. Arguments as `repulsion`, float32 on the CPU.

    Errors, relative to float64: about 1e-7 of the value, 5e-6 of the gradient. The gradient is that of the interpolated
    sum, computed with the value; it can't be differentiated again.

    Raises:
        ValueError: another dtype, or another device.
    """
    if coordinates.dtype != torch.float32 or coordinates.device.type != "cpu":
        raise ValueError(f"gridded works with float32 on the CPU, got {coordinates.dtype} on {coordinates.device.type}")
    grid = _Grid.of(bandwidth, span)
    return in_closed_form(coordinates, weights, bias, functools.partial(_blockwise, grid=grid))


def nodes(bandwidth: float, span: float) -> int:
    """Return the nodes along each axis: what the cost of a view depends on."""
    return math.ceil(span / _spacing(bandwidth)) + _TAPS


def _spacing(bandwidth: float) -> float:
    """Return the distance of two nodes, in pixels."""
    return math.sqrt(bandwidth / 2) / _NODES_PER_WIDTH


class _Grid(NamedTuple):
    """What a bandwidth and a span determine."""

    spacing: float  # pixels between two nodes
    kernel: Tensor  # [G, G], t of two nodes of an axis
    window: Tensor  # [36], numbers of a point's nodes after the first one

    @classmethod
    @functools.lru_cache(maxsize=8)
    def of(cls, bandwidth: float, span: float) -> _Grid:
        spacing, count = _spacing(bandwidth), nodes(bandwidth, span)
        period = count + math.ceil(math.sqrt(math.log(1 / _NEGLIGIBLE) * bandwidth) / spacing)
        omega = 2 * math.pi * np.fft.fftfreq(period)
        gaussian = math.sqrt(math.pi * bandwidth) / spacing * np.exp(-((omega / spacing) ** 2) * bandwidth / 4)
        line = np.fft.ifft(gaussian / np.sinc(omega / (2 * math.pi)) ** (2 * _TAPS)).real
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        steps = torch.arange(_TAPS)
        window = (steps[:, None] * count + steps).flatten()
        return cls(spacing, torch.from_numpy(line[apart].astype(np.float32)), window)


class _Spread(NamedTuple):
    """Where points lie on the grid."""

    nodes: Tensor  # [L, 36 · N], int64; numbers of their nodes
    splines: Tensor  # [L, 2, 12, N]; of each axis the weights of six nodes, and their derivatives by spacings


def _blockwise(axes: Tensor, rows: Tensor, with_gradient: bool, grid: _Grid) -> tuple[Tensor, ...]:
    """Work on as many views and points at once as the working set holds. A `Form`, but for the grid."""
    # The first node: below all points, whatever frame they are in. Differences are all that counts.
    axes = (axes - axes.amin(-1, keepdim=True)) / grid.spacing if axes.shape[-1] else axes
    # Of a point: where its nodes lie and, for each row, what they hold, and a product.
    room = max(64, _WORKING_SET // (_TAPS * _TAPS * (8 + 12 * rows.shape[1])))
    points = axes.shape[-1]
    length = max(1, math.ceil(points / max(1, math.ceil(points / room))))
    views = max(1, room // max(points, 1))
    pieces = []
    for start in range(0, max(len(axes), 1), views):
        block = slice(start, start + views)
        pieces.append(_one_block(axes[block], rows[block], grid, length, with_gradient))
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _one_block(axes: Tensor, rows: Tensor, grid: _Grid, length: int, with_gradient: bool) -> tuple[Tensor, ...]:
    """Return the value [L] and, if asked for, the derivatives by place [L, 2, N] and the kernel's action [L, R, N]."""
    count = len(grid.kernel)
    field = rows.new_zeros(*rows.shape[:2], count * count)
    parts = list(zip(torch.split(axes, length, -1), torch.split(rows, length, -1), strict=True))
    spreads = [_spread(part, grid) for part, _ in parts]
    for spread, (_, weight) in zip(spreads, parts, strict=True):
        _add(field, spread, weight)
    sources = field.view(*rows.shape[:2], count, count)
    answer = grid.kernel @ sources @ grid.kernel
    value = (answer[:, 0] * sources[:, -1]).sum((1, 2))
    if not with_gradient:
        return (value,)
    found = [_read(answer, spread, weight, grid) for spread, (_, weight) in zip(spreads, parts, strict=True)]
    by_place, action = (torch.cat(part, dim=-1) for part in zip(*found, strict=True))
    return value, by_place, action


def _spread(axes: Tensor, grid: _Grid) -> _Spread:
    """Return the nodes and splines of points [L, 2, N], in spacings."""
    low = axes.floor()
    within = axes - low
    square = within.square()
    ones, cube = torch.ones_like(within), square * within
    powers = torch.stack((ones, within, square, cube, square.square(), square * cube), dim=2)  # [L, 2, 6, N]
    first = low.long()
    start = first[:, 1] * len(grid.kernel) + first[:, 0]
    return _Spread((grid.window[:, None] + start[:, None]).flatten(1), _pieces() @ powers)


def _add(field: Tensor, spread: _Spread, weights: Tensor) -> None:
    """Add points' weights [L, R, N] to the nodes, field [L, R, G²]."""
    x, y = spread.splines[:, 0, None, None, :_TAPS], spread.splines[:, 1, None, :_TAPS]
    shares = (weights[:, :, None] * y)[:, :, :, None] * x  # [L, R, 6, 6, N]
    places = spread.nodes[:, None].expand(-1, weights.shape[1], -1)
    field.scatter_add_(2, places, shares.flatten(2))


def _read(answer: Tensor, spread: _Spread, weights: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Return the derivatives by place [L, 2, N], and the kernel's action on each row of weights [L, R, N]."""
    near = torch.empty(*weights.shape[:2], _TAPS, _TAPS, weights.shape[-1])
    for view in range(len(near)):
        places = spread.nodes[view].numpy()
        for row in range(near.shape[1]):
            # Twice as fast as PyTorch's own; no place is out of range, and clip is the mode without a check.
            np.take(answer[view, row].numpy(), places, mode="clip", out=near[view, row].view(-1).numpy())
    x, along_x, y, along_y = torch.split(spread.splines.flatten(1, 2)[:, None], _TAPS, dim=2)  # [L, 1, 6, N]
    by_column = (near * y[:, :, :, None]).sum(2)  # [L, R, 6, N]
    action = (by_column * x).sum(2)
    slope_x = (by_column * along_x).sum(2) / grid.spacing
    slope_y = (near.mul_(along_y[:, :, :, None]).sum(2) * x).sum(2) / grid.spacing
    return torch.stack((both_ways(weights, slope_x), both_ways(weights, slope_y)), dim=1), action


@functools.cache
def _pieces() -> Tensor:
    """Return the spline as six polynomials [12, 6]: the coefficients of each tap, then those of its derivative."""
    pieces: list[NDArray[np.float64]] = [np.ones(1)]
    for order in range(2, _TAPS + 1):
        wider = [np.zeros(order) for _ in range(order)]
        for piece, polynomial in enumerate(pieces):
            # (order - 1) B(x) = x B'(x) + (order - x) B'(x - 1), B' of the order before; x = piece + u on a piece
            wider[piece][:-1] += piece * polynomial
            wider[piece][1:] += polynomial
            wider[piece + 1][:-1] += (order - piece - 1) * polynomial
            wider[piece + 1][1:] -= polynomial
        pieces = [polynomial / (order - 1) for polynomial in wider]
    taps = np.stack(pieces[::-1])  # the first node lies farthest below the point
    slopes = np.pad(taps[:, 1:] * np.arange(1, _TAPS), ((0, 0), (0, 1)))
    return torch.from_numpy(np.concatenate((taps, slopes)).astype(np.float32))
