"""The mean over the views that exist: objects may have fewer than the batch has places."""

from __future__ import annotations

from torch import Tensor


def mean_over_views(per_view: Tensor, view_mask: Tensor | None = None) -> Tensor:
    """Return the mean over objects of each object's mean over its views, so that every object counts alike.

    Args:
        per_view: [B, V].
        view_mask: [B, V], True where there is a view; None: everywhere. Each object needs one at least.

    Returns:
        A scalar. No gradient reaches places without a view.

    Raises:
        ValueError: the shapes differ.
    """
    if view_mask is None:
        return per_view.mean()
    if view_mask.shape != per_view.shape:
        raise ValueError(f"view_mask must be {list(per_view.shape)}, got {list(view_mask.shape)}")
    present = view_mask.bool()
    sums = per_view.where(present, per_view.new_zeros(())).sum(-1)
    mean: Tensor = (sums / present.sum(-1).clamp(min=1)).mean()
    return mean
