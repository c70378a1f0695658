"""Chamfer distance, F-score and silhouette overlap against brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drwr_dist.metrics import chamfer_distance, f_score, nearest_distances, silhouette_iou

F64 = torch.float64


@given(n=st.integers(1, 40), m=st.integers(1, 40), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_chamfer_is_the_mean_nearest_distance(n: int, m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    predicted, target = (torch.randn(k, 3, dtype=F64, generator=generator) for k in (n, m))
    pairs = (predicted[:, None] - target).norm(dim=-1)
    forth, back = chamfer_distance(predicted, target)
    torch.testing.assert_close(forth, pairs.min(1).values.mean())
    torch.testing.assert_close(back, pairs.min(0).values.mean())


def test_chamfer_of_shifted_points_is_the_shift() -> None:
    points = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]])
    forth, back = chamfer_distance(points + torch.tensor([0.0, 0, 0.1]), points)
    torch.testing.assert_close(forth, torch.tensor(0.1))  # not squared, not times 100
    torch.testing.assert_close(back, torch.tensor(0.1))


def test_chamfer_gradient() -> None:
    predicted = torch.randn(7, 3, dtype=F64, requires_grad=True)
    target = torch.randn(11, 3, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(chamfer_distance, (predicted, target))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_points_that_coincide_have_no_gradient(dtype: torch.dtype) -> None:
    points = torch.randn(5, 3, dtype=dtype, requires_grad=True)
    forth, back = chamfer_distance(points, points.detach().clone())
    (gradient,) = torch.autograd.grad(forth + back, points)
    assert forth.dtype == dtype
    assert forth == back == 0
    assert (gradient == 0).all()


def test_large_sets_need_no_large_memory() -> None:
    """20,000 against 100,000 points: their distance matrix would take 16 GB."""
    predicted, target = torch.rand(20_000, 3), torch.rand(100_000, 3)
    forth, back = chamfer_distance(predicted, target)
    assert 0 < forth < back < 0.05


def test_nearest_distances() -> None:
    queries, among = torch.tensor([[0.0, 0, 0], [2, 0, 0]]), torch.tensor([[0.0, 0, 3], [2, 0, 1]])
    torch.testing.assert_close(nearest_distances(queries, among), torch.tensor([math.sqrt(5), 1.0]))


@pytest.mark.parametrize("bad", [torch.zeros(0, 3), torch.zeros(4, 2), torch.zeros(2, 4, 3), torch.zeros(4, 3).long()])
def test_wrong_shapes_are_named(bad: torch.Tensor) -> None:
    good = torch.zeros(4, 3)
    for arguments in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match=str(bad.shape[0])):
            chamfer_distance(*arguments)
        with pytest.raises(ValueError, match=str(bad.shape[0])):
            f_score(*arguments, 0.1)


def test_points_that_are_not_finite_are_counted() -> None:
    bad = torch.zeros(4, 3)
    bad[1, 2] = bad[3, 0] = math.nan
    with pytest.raises(ValueError, match="2 points that are not finite"):
        chamfer_distance(bad, torch.zeros(1, 3))


def test_f_score() -> None:
    target = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    predicted = torch.tensor([[0.0, 0, 0.01], [1, 0, 0.5]])
    precision, recall = 1 / 2, 1 / 4
    expected = torch.tensor(2 * precision * recall / (precision + recall))
    torch.testing.assert_close(f_score(predicted, target, 0.02), expected)
    assert f_score(target, target, 1e-6) == 1
    assert f_score(predicted + 10, target, 0.02) == 0


class TestSilhouetteIou:
    def disc(self, size: int = 128) -> torch.Tensor:
        centres = (torch.arange(size) + 0.5) / size - 0.5
        return ((centres[:, None] ** 2 + centres**2) < 0.3**2).float()

    def sample(self, count: int, radius: float = 0.3) -> torch.Tensor:
        angle, distance = 2 * math.pi * torch.rand(count), radius * torch.rand(count).sqrt()
        return torch.stack((distance * angle.cos(), distance * angle.sin()), dim=-1) + 0.5

    def test_a_dense_sample_scores_nearly_one(self) -> None:
        assert silhouette_iou(self.sample(20_000), self.disc()) > 0.95
        assert silhouette_iou(self.sample(2000), self.disc()) > 0.88

    def test_a_shift_and_a_collapse_cost(self) -> None:
        assert silhouette_iou(self.sample(20_000) + 0.15, self.disc()) < 0.6
        assert silhouette_iou(self.sample(20_000, radius=0.15), self.disc()) < 0.4

    def test_rows_are_y_and_go_down(self) -> None:
        mask = torch.zeros(64, 64)
        mask[:2] = 1  # the uppermost of 32 rows of cells
        along_top = torch.stack((torch.linspace(0.001, 0.999, 500), torch.full((500,), 0.01)), dim=-1)
        assert silhouette_iou(along_top, mask) == 1
        assert silhouette_iou(along_top.flip(-1), mask) < 0.1

    def test_points_out_of_the_frame_do_not_count(self) -> None:
        xy = torch.tensor([[math.inf, math.inf], [math.nan, 0.5], [-0.1, 0.5], [0.5, 1.0]])
        assert silhouette_iou(xy, torch.zeros(32, 32)) == 1
        assert silhouette_iou(xy, torch.ones(32, 32, dtype=torch.bool)) == 0
        assert silhouette_iou(torch.cat((xy, torch.tensor([[0.5, 0.5]]))), torch.zeros(40, 50)) == 0

    def test_wrong_shapes_are_named(self) -> None:
        with pytest.raises(ValueError, match=r"\[3, 3\]"):
            silhouette_iou(torch.zeros(3, 3), torch.zeros(64, 64))
        with pytest.raises(ValueError, match=r"\[16, 64\]"):
            silhouette_iou(torch.zeros(3, 2), torch.zeros(16, 64))
