"""Smooth silhouettes against a brute-force reference, and the masks that are special."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drwr_dist import silhouette
from drwr_dist.silhouette import binarize, smooth_silhouette


def reference(mask: Tensor) -> Tensor:
    """Compute the definition, pixel by pixel of the background, one mask [H, W]."""
    inside = (mask >= 0.95).nonzero().double()
    if len(inside) in (0, mask.numel()):
        return mask.clone()
    result = mask.clone()
    for row, column in (mask == 0).nonzero().tolist():
        distance = (inside - torch.tensor([row, column])).norm(dim=-1).min()
        result[row, column] = 220 / 255 - distance / (64 * 2**0.5)
    return result


@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    share=st.floats(0, 1),
    edges=st.floats(0, 0.5),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
@settings(max_examples=60, deadline=None)
def test_matches_the_definition(
    height: int, width: int, share: float, edges: float, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(height, width, generator=generator) < share).to(dtype)
    antialiased = torch.rand(height, width, generator=generator) < edges
    mask = torch.where(antialiased, torch.rand(height, width, generator=generator).to(dtype), mask)
    limit = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(smooth_silhouette(mask), reference(mask), atol=limit, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.5, 0.9499, 0.95, 1.0])
def test_masks_of_one_value_are_returned(value: float) -> None:
    mask = torch.full((2, 8, 8), value)
    assert torch.equal(smooth_silhouette(mask), mask)


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_leading_dimensions(leading: tuple[int, ...]) -> None:
    masks = (torch.rand(*leading, 9, 11) > 0.8).double()
    smooth = smooth_silhouette(masks)
    assert smooth.shape == masks.shape
    for one, many in zip(masks.view(-1, 9, 11), smooth.view(-1, 9, 11), strict=True):
        torch.testing.assert_close(many, reference(one))


def test_a_large_image_takes_the_exact_route(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.zeros(200, 150, dtype=torch.float64)
    mask[3, 4] = mask[150, 100] = 1
    fast = smooth_silhouette(mask)
    monkeypatch.setattr(silhouette, "_EXACT_IN_FLOAT32", 0)
    torch.testing.assert_close(smooth_silhouette(mask), fast, atol=1e-14, rtol=0)


def test_input_is_left_alone_and_no_gradient_flows() -> None:
    mask = (torch.rand(8, 8) > 0.5).float().requires_grad_()
    before = mask.detach().clone()
    assert not smooth_silhouette(mask).requires_grad
    assert torch.equal(mask.detach(), before)


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"torch.uint8 \[4, 4\]"):
        smooth_silhouette(torch.zeros(4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[4\]"):
        smooth_silhouette(torch.zeros(4))
    with pytest.raises(ValueError, match="int64"):
        binarize(np.zeros(4, dtype=np.int64))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_binarize_agrees_for_bytes_and_fractions(dtype: type) -> None:
    alpha = np.arange(256, dtype=np.uint8)
    binary = binarize(alpha)
    assert binary.dtype == np.uint8
    assert set(binary.tolist()) == {0, 255}
    assert binary[152] == 0
    assert binary[153] == 255
    fractions = binarize(alpha.astype(dtype) / dtype(255))
    assert fractions.dtype == dtype
    assert np.array_equal(fractions * 255, binary)
    assert torch.equal(binarize(torch.from_numpy(alpha)), torch.from_numpy(binary))
    assert np.array_equal(binarize(torch.from_numpy(alpha.astype(dtype) / dtype(255))).numpy(), fractions)
