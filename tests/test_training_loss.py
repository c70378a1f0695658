"""The objective as training composes it: weights, schedules, objects with fewer views, random draws."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from drwr_dist.camera import project, world_to_camera_from_position
from drwr_dist.config import LossConfig, ModelConfig, TrainConfig
from drwr_dist.engine import schedule
from drwr_dist.errors import UsageError
from drwr_dist.losses import drwr_loss
from drwr_dist.losses.draws import kept_points
from drwr_dist.losses.sampling import pixel_coordinates
from drwr_dist.losses.training import OTHER_TERMS, Views, _targets, active_terms, training_loss
from drwr_dist.losses.volumetric import volumetric
from drwr_dist.validation import validate

F64 = torch.float64
BOTH = pytest.mark.parametrize("semantics", ["default", "released"])
ALL = {key: 0.5 + place for place, key in enumerate(OTHER_TERMS.values())}


def scene(batch: int = 2, views: int = 3, points: int = 20) -> tuple[Tensor, Tensor, Tensor]:
    """Return points [B, N, 3], cameras [B, V, 4, 4] and masks [B, V, 32, 32], all different."""
    cloud = torch.rand(batch, points, 3, dtype=F64) * 0.8 - 0.4
    cameras = world_to_camera_from_position(torch.randn(batch, views, 3, dtype=F64))
    centres = (torch.arange(32, dtype=F64) + 0.5) / 32 - 0.5
    radius = 0.15 + 0.25 * torch.rand(batch, views, 1, 1, dtype=F64)
    return cloud, cameras, (centres[:, None] ** 2 + centres**2 < radius**2).to(F64)


def config(semantics: str = "default", **weights: float) -> LossConfig:
    return LossConfig(semantics=semantics, grid=16, volumetric_sigma=1.0, chamfer_2d_draws=30, **weights)  # type: ignore[arg-type]


KEYS = ["chair/a", "chair/b"]


@BOTH
def test_without_other_terms_it_is_the_drwr_loss(semantics: str) -> None:
    points, cameras, masks = scene()
    plain = drwr_loss(points, cameras, masks, grid=16, config=config(semantics), semantics=semantics)
    result = training_loss(points, Views(cameras, masks), config(semantics))
    torch.testing.assert_close(result.total, plain.total)
    torch.testing.assert_close(result.terms["unary"], plain.unary)
    torch.testing.assert_close(result.terms["repulsion"], plain.repulsion)
    covers = {"coverage", "crowding"} if semantics == "default" else set()
    assert set(result.terms) == {"unary", "repulsion"} | covers


@BOTH
@pytest.mark.parametrize("name", OTHER_TERMS)
def test_each_term_enters_with_its_weight(semantics: str, name: str) -> None:
    points, cameras, masks = scene()
    nothing = {"unary_weight": 0.0, "repulsion_weight": 0.0, "coverage_weight": 0.0, "crowding_weight": 0.0}
    alone = training_loss(
        points, Views(cameras, masks), config(semantics, **nothing, **{OTHER_TERMS[name]: 2.5}), keys=KEYS
    )
    assert list(alone.terms) == [name] and alone.terms[name] != 0
    torch.testing.assert_close(alone.total, 2.5 * alone.terms[name])
    everything = training_loss(points, Views(cameras, masks), config(semantics, **ALL), keys=KEYS)
    torch.testing.assert_close(everything.terms[name], alone.terms[name])
    drwr = drwr_loss(points, cameras, masks, grid=16, config=config(semantics), semantics=semantics).total
    total = drwr + sum(ALL[key] * everything.terms[term] for term, key in OTHER_TERMS.items())
    torch.testing.assert_close(everything.total, total)


def test_the_terms_that_are_reported_are_known_before() -> None:
    points, cameras, masks = scene()
    for weights in ({}, {"sum_weight": 1.0}, {**ALL, "unary_weight": 0.0, "repulsion_weight": 0.0}):
        for semantics in ("default", "released"):
            loss = config(semantics, **weights)
            assert active_terms(loss) == list(training_loss(points, Views(cameras, masks), loss, keys=KEYS).terms)


@BOTH
def test_the_cameras_depth_is_about_the_centre_of_the_cube(semantics: str) -> None:
    """A camera at distance 2.6 sees the cube in the middle of the volume, as one at 2 does."""
    points, cameras, masks = scene(batch=1, views=2)
    cameras[..., 2, 3] = 2.6
    weights = {
        "unary_weight": 0.0,
        "repulsion_weight": 0.0,
        "coverage_weight": 0.0,
        "crowding_weight": 0.0,
        "volumetric_weight": 1.0,
    }
    scale = torch.tensor([0.7], dtype=F64)
    result = training_loss(points, Views(cameras, masks), config(semantics, **weights), scale=scale)
    xy, depth = project(points[:, None], cameras)
    expected = volumetric(xy[0], depth[0] - 2.6, masks[0], scale.expand(2), 16, 1.0, 21, semantics)
    torch.testing.assert_close(result.total, expected.mean())


@BOTH
def test_an_object_with_fewer_views_counts_as_it_does_alone(semantics: str) -> None:
    """Loss and gradient of an object with 3 views do not change when the batch has places for 5."""
    points, cameras, masks = scene(batch=2, views=5)
    present = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    masks[0, 3:], cameras[0, 3:] = 0, torch.eye(4, dtype=F64)  # what stands in the empty places counts for nothing
    loss = config(semantics, **ALL)
    scale = torch.tensor([0.6, 0.9], dtype=F64, requires_grad=True)
    points.requires_grad_()
    together = training_loss(points, Views(cameras, masks, present=present), loss, scale=scale, keys=KEYS)
    gradients = torch.autograd.grad(together.total, (points, scale))
    total: Tensor = torch.zeros((), dtype=F64)
    for row, views in ((0, 3), (1, 5)):
        part = slice(row, row + 1)
        alone = training_loss(
            points[part], Views(cameras[part, :views], masks[part, :views]), loss, scale=scale[part], keys=KEYS[part]
        )
        total = total + alone.total / 2
    torch.testing.assert_close(together.total, total)
    for gradient, expected in zip(gradients, torch.autograd.grad(total, (points, scale)), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_drwr_loss_with_a_view_mask() -> None:
    points, cameras, masks = scene(batch=2, views=5)
    present = torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    together = drwr_loss(points, cameras, masks, view_mask=present)
    first = drwr_loss(points[:1], cameras[:1, :3], masks[:1, :3])
    second = drwr_loss(points[1:], cameras[1:], masks[1:])
    for both, one, other in zip(together, first, second, strict=True):
        torch.testing.assert_close(both, (one + other) / 2)
    with pytest.raises(ValueError, match=r"view_mask must be \[2, 5\], got \[2, 4\]"):
        drwr_loss(points, cameras, masks, view_mask=present[:, 1:])


def test_dropped_points_are_as_if_not_there() -> None:
    points, cameras, masks = scene()
    loss = config(**ALL, keep_points=0.4)
    result = training_loss(points, Views(cameras, masks), loss, keys=KEYS, seed=2, step=7)
    kept = points[:, kept_points(20, 0.4, 2, 7)]
    expected = training_loss(kept, Views(cameras, masks), config(**ALL), keys=KEYS, seed=2, step=7)
    torch.testing.assert_close(result.total, expected.total)
    other = training_loss(points, Views(cameras, masks), loss, keys=KEYS, seed=2, step=8)
    assert not torch.isclose(result.total, other.total)


def test_a_coordinate_that_is_not_finite_makes_the_total_nan() -> None:
    points, cameras, masks = scene()
    points[0, 3, 1] = math.inf
    weights = {"unary_weight": 0.0, "repulsion_weight": 0.0, "coverage_weight": 0.0, "crowding_weight": 0.0}
    for name in OTHER_TERMS.values():
        assert training_loss(points, Views(cameras, masks), config(**weights, **{name: 1.0}), keys=KEYS).total.isnan()


def test_schedules() -> None:
    loss = LossConfig(keep_points=0.07, repulsion_weight=0.2, repulsion_weight_end=0.02)
    first, middle, last = (schedule.loss_at(loss, step, 101) for step in (0, 50, 100))
    assert (first.volumetric_sigma, first.keep_points) == (3.0, 0.07)
    assert middle.volumetric_sigma == pytest.approx(1.6)
    assert middle.keep_points == pytest.approx(0.535)
    assert (last.volumetric_sigma, last.keep_points) == pytest.approx((0.2, 1.0))
    assert first.repulsion_weight == 0.2
    assert middle.repulsion_weight == pytest.approx(0.02 * 10**0.5)
    assert last.repulsion_weight == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        ({"semantics": "released", "unary_weight": 0.0, "repulsion_weight": 0.0}, "every weight of the loss is 0"),
        ({"volumetric_kernel": 4}, "loss.volumetric_kernel=4: must be odd"),
        ({"keep_points": 0.0}, "loss.keep_points"),
    ],
)
def test_impossible_objectives_are_refused(loss: dict[str, float], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        validate(TrainConfig(loss=LossConfig(**loss)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing would train it"):
        validate(TrainConfig(model=ModelConfig(scale_head=True)))


def test_points_drawn_in_a_silhouette_lie_where_it_is() -> None:
    """In the coordinates that projections have: of one pixel of the mask, all over that pixel, and nowhere else."""
    mask = torch.zeros(1, 32, 32, dtype=F64)
    mask[0, 5, 20] = 1
    numbers = torch.rand(1, 4000, 3, dtype=F64)
    drawn = _targets(mask, numbers, 16, "default")[0]
    corners = pixel_coordinates(torch.tensor([[20.0, 5.0], [21.0, 6.0]], dtype=F64) / 32, 16)
    assert (drawn >= corners[0]).all() and (drawn <= corners[1]).all()
    torch.testing.assert_close(drawn.mean(0), corners.mean(0), atol=0.02, rtol=0)
