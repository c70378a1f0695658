"""The repulsion: fast forms against plain, gradients, numbers of points, and what must not show."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drwr_dist.losses.repulsion import repulsion, repulsion_plain
from drwr_dist.losses.repulsion_by_grid import repulsion_gridded
from drwr_dist.losses.repulsion_by_series import repulsion_fourier, series

F64 = torch.float64


def _repulsion_inputs(n: int, grid: int, spread: float, dtype: torch.dtype, views: int = 2) -> list[Tensor]:
    """Return coordinates [L, N, 2], weights and bias [L, N]: points within a share `spread` of the frame."""
    generator = torch.Generator().manual_seed(n)
    places = 0.5 + spread * (torch.rand(views, n, 2, generator=generator, dtype=F64) - 0.5)
    weights, bias = torch.rand(2, views, n, generator=generator, dtype=F64)
    return [tensor.to(dtype) for tensor in (places * (grid - 1), weights, bias)]


def _value_and_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], grid: int, method: str = "auto"
) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    places, weights, bias = (*leaves, None)[:3]
    value = function(places, weights, bias, 5 * grid / 32, grid - 1.0, method)
    return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]


class TestRepulsion:
    @pytest.mark.parametrize("grid", [32, 64, 128])
    @pytest.mark.parametrize("tolerance", [1e-6, 1e-14])
    def test_the_series_is_the_gaussian(self, grid: int, tolerance: float) -> None:
        bandwidth = 5 * grid / 32
        period, coefficients = series(bandwidth, grid - 1, tolerance)
        x = torch.linspace(-(grid - 1), grid - 1, 2001, dtype=F64)
        modes = torch.arange(len(coefficients), dtype=F64)
        approximated = (2 * math.pi * x[:, None] * modes / period).cos() @ torch.tensor(coefficients, dtype=F64)
        assert (approximated - (-(x**2) / bandwidth).exp()).abs().max() < 4 * tolerance
        if tolerance == 1e-6:
            assert len(coefficients) == {32: 21, 64: 28, 128: 38}[grid]

    @given(
        views=st.integers(1, 3),
        n=st.integers(1, 40),
        grid=st.sampled_from([8, 32, 64, 128]),
        spread=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
        seed=st.integers(0, 2**31),
        dtype=st.sampled_from([torch.float64, torch.float32]),
    )
    @settings(max_examples=60, deadline=None)
    def test_linear_forms_agree_with_plain(
        self, views: int, n: int, grid: int, spread: float, seed: int, dtype: torch.dtype
    ) -> None:
        """Values and all three gradients, for clusters and for points from border to border."""
        generator = torch.Generator().manual_seed(seed)
        centre = torch.rand(views, 1, 2, generator=generator, dtype=dtype)
        noise = torch.rand(views, n, 2, generator=generator, dtype=dtype) - 0.5
        places = ((centre + 2 * spread * noise).clamp(0, 1) * (grid - 1)).requires_grad_()
        weights = torch.rand(views, n, generator=generator, dtype=dtype).round(decimals=1).requires_grad_()
        bias = (3.5 + torch.rand(views, n, generator=generator, dtype=dtype)).requires_grad_()
        upstream = torch.rand(views, generator=generator, dtype=dtype) + 0.5
        inputs, results = (places, weights, bias), []
        forms: list[tuple[Callable[..., Tensor], tuple[float, ...]]] = [(repulsion_plain, ())]
        forms.append((repulsion_fourier, (grid - 1.0,)))
        if dtype == torch.float32:
            forms.append((repulsion_gridded, (grid - 1.0,)))
        for function, span in forms:
            value = function(*inputs, 5 * grid / 32, *span)
            results.append((value, *torch.autograd.grad(value @ upstream, inputs)))
        limit = 1e-12 if dtype == torch.float64 else 2e-5
        scale = float(results[0][0].max().detach()) + 1e-30  # gradients that cancel have no scale of their own
        plain, *linear = results
        for found in linear:
            for one, other in zip(found, plain, strict=True):
                torch.testing.assert_close(one, other, atol=limit * scale, rtol=limit)

    @pytest.mark.parametrize("method", ["plain", "fourier"])
    def test_gradient(self, method: str) -> None:
        places = (torch.rand(2, 6, 2, dtype=F64) * 15).requires_grad_()
        weights = torch.rand(2, 6, dtype=F64, requires_grad=True)
        bias = torch.rand(2, 6, dtype=F64, requires_grad=True)
        check = lambda p, w, b: repulsion(p, w, b, 3.0, 15.0, method)  # noqa: E731
        assert torch.autograd.gradcheck(check, (places, weights, bias))

    @pytest.mark.parametrize("grid", [32, 64, 128])
    @pytest.mark.parametrize("spread", [0.05, 1.0])
    @pytest.mark.parametrize(("dtype", "limit"), [(F64, 1e-13), (torch.float32, 4e-6)])
    @pytest.mark.parametrize("biased", [True, False])
    def test_numbers_of_points(self, grid: int, spread: float, dtype: torch.dtype, limit: float, biased: bool) -> None:
        """Against the plain form in float64, on both sides of where `auto` changes from one form to the other."""
        for n in (1, 2, 128, 129, 700):
            inputs = _repulsion_inputs(n, grid, spread, dtype)
            inputs = inputs if biased else inputs[:2]
            found = _value_and_gradients(repulsion, inputs, grid)
            exact = _value_and_gradients(repulsion, [t.detach().double() for t in inputs], grid, "plain")
            for one, other in zip(found, exact, strict=True):
                assert (one - other).abs().max() <= limit * exact[0].abs().max().clamp(min=1e-6), n

    @pytest.mark.parametrize("n", [20_000, 200_000])
    @pytest.mark.parametrize(("dtype", "limit"), [(F64, 1e-12), (torch.float32, 2e-5)])
    def test_many_points(self, n: int, dtype: torch.dtype, limit: float) -> None:
        """A few rows of the sum over all pairs, and all rows together."""
        inputs = _repulsion_inputs(n, 64, 1.0, dtype, views=1)
        value, by_place, by_weight, by_bias = _value_and_gradients(repulsion, inputs, 64)
        places, weights, bias = (tensor.detach().double()[0] for tensor in inputs)
        rows = torch.arange(0, n, n // 20)
        difference = places[rows, None] - places  # [R, N, 2]
        kernel = (-difference.square().sum(-1) / 10).exp()
        target = weights * bias.exp()
        pull = target[rows, None] * weights + weights[rows, None] * target
        expected = {
            "place": (by_place, (pull * kernel)[..., None] * difference * (-2 / 10)),
            "weight": (by_weight, kernel * (target + bias[rows, None].exp() * weights)),
            "bias": (by_bias, kernel * target[rows, None] * weights),
        }
        for name, (found, terms) in expected.items():
            exact = terms.sum(1)
            assert (found[0, rows] - exact).abs().max() < limit * exact.abs().max(), name
        torch.testing.assert_close(value[0].double(), by_bias.double().sum(), rtol=limit, atol=0)

    @given(
        n=st.integers(129, 300),
        bandwidth=st.floats(0.05, 2000.0),
        span=st.floats(1.0, 130.0),
        origin=st.floats(-1000.0, 1000.0),
        seed=st.integers(0, 2**31),
    )
    @settings(max_examples=60, deadline=None)
    def test_any_width_anywhere(self, n: int, bandwidth: float, span: float, origin: float, seed: int) -> None:
        """Gaussians from far narrower than a pixel to far wider than the frame, at any place of the plane."""
        generator = torch.Generator().manual_seed(seed)
        where = torch.rand(2, n, 2, generator=generator) * span
        weights = torch.rand(2, n, generator=generator)
        # Far from the origin float32 rounds the places: both forms have to see what is left.
        places = (where + origin) if abs(origin) < 10 * span else where
        inputs = [places.requires_grad_(), weights.requires_grad_()]
        found = repulsion(*inputs, None, bandwidth, span * 1.001)
        gradients = torch.autograd.grad(found.sum(), inputs)
        exact_inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
        exact = repulsion_plain(*exact_inputs, None, bandwidth)
        exact_gradients = torch.autograd.grad(exact.sum(), exact_inputs)
        torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=0)
        steepness = float(exact.max().detach()) / min(math.sqrt(bandwidth), span)
        for one, other, scale in zip(gradients, exact_gradients, (steepness, float(exact.max().detach())), strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=3e-5 * scale)

    @pytest.mark.parametrize("biased", [True, False])
    @pytest.mark.parametrize("method", ["fourier", "gridded"])
    def test_value_alone_is_the_same(self, biased: bool, method: str) -> None:
        places, weights, bias = (tensor.detach() for tensor in _repulsion_inputs(50, 32, 1.0, torch.float32))
        arguments = (weights, bias if biased else None, 5.0, 31.0, method)
        without = repulsion(places, *arguments)
        with_gradient = repulsion(places.requires_grad_(), *arguments)
        torch.testing.assert_close(without, with_gradient.detach())

    @pytest.mark.parametrize("room", [0, 60_000, 2**30])
    @pytest.mark.parametrize(("method", "dtype"), [("fourier", F64), ("gridded", torch.float32)])
    def test_blocks_of_views_and_points_do_not_show(
        self, monkeypatch: pytest.MonkeyPatch, room: int, method: str, dtype: torch.dtype
    ) -> None:
        """One view of 64 points at a time, a few views, all of it."""
        for n in (0, 30, 150):
            inputs = _repulsion_inputs(n, 32, 1.0, dtype, views=5)
            monkeypatch.undo()
            expected = _value_and_gradients(repulsion, inputs, 32, method)
            module = {"fourier": "repulsion_by_series", "gridded": "repulsion_by_grid"}[method]
            monkeypatch.setattr(f"drwr_dist.losses.{module}._WORKING_SET", room)
            for one, other in zip(_value_and_gradients(repulsion, inputs, 32, method), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-12 if dtype == F64 else 1e-5)

    def test_gridded_is_for_float32(self) -> None:
        with pytest.raises(ValueError, match="float32 on the CPU, got"):
            repulsion(*_repulsion_inputs(200, 32, 1.0, F64), 5.0, 31.0, "gridded")

    def test_gridded_repeats_bit_for_bit(self) -> None:
        inputs = _repulsion_inputs(3000, 64, 1.0, torch.float32)
        first, again = (_value_and_gradients(repulsion, inputs, 64, "gridded") for _ in range(2))
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))

    def test_autocast_leaves_it_alone(self) -> None:
        places, weights, bias = torch.rand(1, 300, 2) * 31, torch.rand(1, 300), torch.rand(1, 300)
        for form in (repulsion_fourier, repulsion_gridded):
            expected = form(places, weights, bias, 5.0, 31.0)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.testing.assert_close(form(places, weights, bias, 5.0, 31.0), expected)

    def test_an_unknown_method_is_named(self) -> None:
        with pytest.raises(ValueError, match="'dense'"):
            repulsion(torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.zeros(1, 1), 5.0, 31.0, "dense")
