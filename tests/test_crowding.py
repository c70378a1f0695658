"""The crowding term: its definition, gradients, both ways of finding neighbours, and odd clouds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drwr_dist.losses.crowding import NEIGHBOURS, _nearest_of_all, crowding

F64 = torch.float64


def by_loops(cloud: Tensor, radius: float) -> float:
    """Return S of one cloud [N, 3] from its definition."""
    reach, total = radius * (1000 / len(cloud)) ** 0.5, 0.0
    for number, point in enumerate(cloud):
        others = torch.cat((cloud[:number], cloud[number + 1 :]))
        nearest = (others - point).norm(dim=-1).sort().values[:NEIGHBOURS]
        total += sum(max(0.0, 1 - float(distance) / reach) for distance in nearest) / NEIGHBOURS
    return total / len(cloud)


def everything(points: Tensor) -> Tensor:
    return torch.ones(points.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("radius", [0.005, 0.03])
def test_the_definition(radius: float) -> None:
    points = torch.rand(2, 60, 3, dtype=F64) - 0.5
    expected = torch.tensor([by_loops(cloud, radius) for cloud in points], dtype=F64)
    torch.testing.assert_close(crowding(points, everything(points), radius), expected, atol=2e-3, rtol=1e-3)


def test_gradient() -> None:
    points = (torch.rand(1, 12, 3, dtype=F64) * 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: crowding(p, everything(p), 0.02), (points,))


def test_descent_drives_a_clump_apart() -> None:
    points = (torch.randn(1, 50, 3, dtype=F64) * 0.01).requires_grad_()
    before = crowding(points, everything(points), 0.03)
    for _ in range(200):
        (gradient,) = torch.autograd.grad(crowding(points, everything(points), 0.03).sum(), points)
        points = (points - 0.05 * gradient).detach().requires_grad_()
    assert crowding(points, everything(points), 0.03) < 0.2 * before


def test_the_radius_shrinks_as_points_on_a_surface_get_closer() -> None:
    """A square, sampled regularly with 20² and with 40² points, is as crowded."""
    values = []
    for side in (20, 40):
        line = torch.linspace(-0.5, 0.5, side + 1, dtype=F64)[:-1]
        sheet = torch.cartesian_prod(line, line)
        points = torch.cat((sheet, torch.zeros(side**2, 1, dtype=F64)), dim=-1)[None]
        values.append(float(crowding(points, everything(points), 0.06)))
    assert values[0] == pytest.approx(values[1], rel=0.05)
    assert values[0] > 0.1


@pytest.mark.parametrize("room", [1, 64 * 2**20])
def test_both_ways_of_finding_neighbours_agree(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, takes_part = torch.rand(3, 40, 3, dtype=F64), torch.rand(3, 40) < 0.7
    takes_part[2] = False
    takes_part[2, :3] = True  # less than the neighbours asked for
    by_tree = crowding(points, takes_part, 0.1)
    monkeypatch.setattr("drwr_dist.losses.crowding._nearest", _nearest_of_all)
    monkeypatch.setattr("drwr_dist.losses.crowding._WORKING_SET", room)
    torch.testing.assert_close(crowding(points, takes_part, 0.1), by_tree)


@given(seed=st.integers(0, 2**31), left_out=st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_points_that_take_no_part_are_as_if_not_there(seed: int, left_out: int) -> None:
    torch.manual_seed(seed)
    points = torch.rand(1, 9 + left_out, 3, dtype=F64).requires_grad_()
    takes_part = torch.arange(9 + left_out)[None] < 9
    value = crowding(points, takes_part, 0.1)
    torch.testing.assert_close(value, crowding(points[:, :9], takes_part[:, :9], 0.1))
    assert (torch.autograd.grad(value.sum(), points)[0][:, 9:] == 0).all()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_few_points_and_points_that_coincide(count: int) -> None:
    points = torch.zeros(1, count, 3, dtype=F64, requires_grad=True)
    value = crowding(points, everything(points), 0.03)
    assert value == (1.0 if count > 1 else 0.0)
    assert torch.autograd.grad(value.sum(), points)[0].isfinite().all()


def test_nothing_takes_part() -> None:
    points = torch.rand(1, 9, 3, dtype=F64, requires_grad=True)
    value = crowding(points, torch.zeros(1, 9, dtype=torch.bool), 0.1)
    assert value == 0
    assert (torch.autograd.grad(value.sum(), points)[0] == 0).all()
