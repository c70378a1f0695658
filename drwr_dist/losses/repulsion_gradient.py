"""Closed-form gradients for the forms of the repulsion that never see a pair: computed with the value, and kept.

A form tells what the Gaussian sum does to the weights. Of the rows of weights w_r [L, R, N] — s, and a = s exp(b)
where there is a bias — it returns

    value  Σ_ij w_R-1,i K_ij w_0,j        by place  ∂ value / ∂ p        action  (K w_r)_i

so the features of a point are made once for the value and all derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# (axes [L, 2, N], rows [L, R, N], with_gradient) -> value [L], and with a gradient by place [L, 2, N], action [L, R, N]
Form = Callable[[Tensor, Tensor, bool], tuple[Tensor, ...]]
_KEPT = 8 * 2**20  # bytes of the heap that stay


def in_closed_form(coordinates: Tensor, weights: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    """Return Σ_ij s_i exp(b_i) K_ij s_j of each view [L], differentiable once, computed by `form`.

    Args:
        coordinates: [L, N, 2] pixels.
        weights: [L, N], s.
        bias: [L, N], b; None: 0 everywhere.
        form: what the kernel does to rows of weights.
    """
    result: Tensor = _ClosedForm.apply(coordinates, weights, bias, form)  # type: ignore[no-untyped-call]
    return result


class _ClosedForm(torch.autograd.Function):
    """Values and gradients of a form; only gradients are kept for later."""

    @staticmethod
    def forward(ctx: Any, coordinates: Tensor, weights: Tensor, bias: Tensor | None, form: Form) -> Tensor:
        amplification = None if bias is None else bias.exp()
        # s, and a = s exp(b) where there is a bias: the kernel acts on both, [L, R, N].
        rows = weights[:, None] if amplification is None else torch.stack((weights, weights * amplification), dim=1)
        axes = coordinates.mT.contiguous()  # [L, 2, N]
        with_gradient = any(ctx.needs_input_grad[:3])
        if not axes.is_cuda:
            _keep_heap()
        # Autocast would run the matrix products in half precision, far below the forms' tolerance.
        with torch.autocast(coordinates.device.type, enabled=False):
            value, *gradients = form(axes, rows, with_gradient)
        if with_gradient:
            by_place, action = gradients
            if amplification is None:
                ctx.save_for_backward(by_place, 2 * action[:, 0])
            else:
                # Weight s enters as a source and, times exp(b), as a target; b only through the target.
                by_weight = action[:, 1] + amplification * action[:, 0]
                ctx.save_for_backward(by_place, by_weight, rows[:, 1] * action[:, 0])
        return value

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        by_place, by_weight, *by_bias = ctx.saved_tensors
        column = upstream[:, None]
        last = column * by_bias[0] if by_bias else None
        return (column[..., None] * by_place).mT, column * by_weight, last, None


def _keep_heap() -> None:
    """Let glibc keep the memory of the working set: a block that is taken and freed at once raises its thresholds.

    It would otherwise map fresh pages for each tensor, or give the heap's end back after each call, and the kernel's
    zeroing of them costs as much as half of the computation. Other allocators don't mind.
    """
    torch.empty(_KEPT, dtype=torch.uint8)


def both_ways(rows: Tensor, along: Tensor) -> Tensor:
    """Return the derivative of the value by one coordinate of the points [L, N], from ∂ (K w_r)_i / ∂ p_i.

    K is symmetric: point i moves both its row, a_i K_ij s_j, and its column, a_j K_ji s_i.

    Args:
        rows: [L, R, N], the weights.
        along: [L, R, N], the derivative of the kernel's action on each row by the point it is read at.
    """
    partner = rows.flip(1) if rows.shape[1] > 1 else 2 * rows
    return (partner * along).sum(1)
