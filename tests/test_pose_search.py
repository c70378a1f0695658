"""Searched cameras: the grid of directions, the costs of silhouettes, the balanced posterior, the loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from drwr_dist.camera import project, world_to_camera_from_angles
from drwr_dist.config import LossConfig, PoseConfig
from drwr_dist.directions import DirectionGrid, places_in_cells
from drwr_dist.losses.pose_search import balanced, search_loss, silhouette_costs
from drwr_dist.losses.random_cameras import random_cameras
from drwr_dist.losses.training import Views, training_loss

F64 = torch.float64
GRID = DirectionGrid(azimuths=12, elevations=3, lowest=-20.0, highest=40.0)
POSE = PoseConfig(mode="predict", azimuths=12, elevations=3)
LOSS = LossConfig(grid=16)


def angles_of(cameras: Tensor) -> tuple[Tensor, Tensor]:
    """Return azimuth and elevation in degrees of cameras [..., 4, 4] that look at the origin."""
    position = -(cameras[..., :3, :3].mT @ cameras[..., :3, 3:])[..., 0] / 2
    return torch.rad2deg(torch.atan2(-position[..., 2], position[..., 0])), torch.rad2deg(position[..., 1].asin())


def chair(count: int = 600) -> Tensor:
    """Return points of a seat, a back and one arm: no two directions look alike."""
    generator = torch.Generator().manual_seed(0)
    seat, back, arm = torch.rand(3, count // 3, 3, generator=generator, dtype=F64) - 0.5
    seat = seat * torch.tensor([0.6, 0.08, 0.6], dtype=F64)
    back = back * torch.tensor([0.08, 0.5, 0.6], dtype=F64) + torch.tensor([-0.26, 0.25, 0.0], dtype=F64)
    arm = arm * torch.tensor([0.5, 0.06, 0.06], dtype=F64) + torch.tensor([0.0, 0.2, 0.3], dtype=F64)
    return torch.cat((seat, back, arm))


def silhouettes(points: Tensor, cameras: Tensor, side: int = 64) -> Tensor:
    """Return masks [V, side, side] of points [N, 3] as small squares."""
    xy, _ = project(points[None], cameras)
    masks = torch.zeros(len(cameras), side, side, dtype=points.dtype)
    pixel = (xy * side).long()
    for across in range(-2, 3):
        for along in range(-2, 3):
            place = (pixel + torch.tensor([across, along])).clamp(0, side - 1)
            for view in range(len(cameras)):
                masks[view, place[view, :, 1], place[view, :, 0]] = 1
    return masks


class TestDirections:
    def test_cells_fill_the_band(self) -> None:
        azimuth, elevation = angles_of(GRID.cameras(torch.full((len(GRID), 2), 0.5, dtype=F64)))
        assert sorted({round(float(e), 6) for e in elevation}) == [-10, 10, 30]
        assert sorted({round(float(a) % 360, 6) for a in azimuth}) == [15 + 30 * i for i in range(12)]
        lowest, highest = (angles_of(GRID.cameras(torch.full((36, 2), end, dtype=F64)))[1] for end in (0.0, 1.0))
        assert lowest.min().item() == pytest.approx(-20) and highest.max().item() == pytest.approx(40)

    def test_belief_goes_to_the_likeliest_azimuth_not_to_the_mean(self) -> None:
        logits = torch.full((36,), -20.0, dtype=F64)
        logits[12 + 2], logits[12 + 3], logits[12 + 8] = 1.0, 1.0, 1.3  # two cells side by side, and one behind
        azimuth, elevation = angles_of(GRID.believed_cameras(logits))
        assert azimuth.item() == pytest.approx(90, abs=0.1) and elevation.item() == pytest.approx(10, abs=0.1)

    def test_belief_around_the_seam(self) -> None:
        logits = torch.full((36,), -20.0, dtype=F64)
        logits[0], logits[11] = 1.0, 1.0
        assert angles_of(GRID.believed_cameras(logits))[0].item() == pytest.approx(0, abs=0.1)

    def test_places_depend_on_seed_and_step(self) -> None:
        first = places_in_cells(36, 14, 0, 5)
        assert torch.equal(first, places_in_cells(36, 14, 0, 5)) and bool(((first >= 0) & (first < 1)).all())
        assert not torch.equal(first, places_in_cells(36, 14, 0, 6))

    def test_the_baseline_knows_the_band_too(self) -> None:
        _, elevation = angles_of(random_cameras(POSE, [f"chair/{i}" for i in range(40)], 5, 0, 0))
        assert elevation.min() > -20 and elevation.max() < 40 and elevation.std() > 10
        anywhere = random_cameras(PoseConfig(proposals="network"), ["chair/a"], 200, 0, 0)
        assert angles_of(anywhere)[1].max() > 60


class TestCosts:
    def test_the_right_direction_costs_least(self) -> None:
        points = chair()
        cameras = GRID.cameras(torch.full((len(GRID), 2), 0.5, dtype=F64))
        seen = torch.tensor([0, 7, 17, 22, 35])
        views = Views(cameras[None, seen], silhouettes(points, cameras[seen])[None])
        costs = silhouette_costs(points[None], cameras[None], views)
        assert costs.shape == (1, 5, 36)
        assert costs[0].argmin(-1).tolist() == seen.tolist()

    def test_lenses_of_their_own(self) -> None:
        points = chair()
        cameras = GRID.cameras(torch.full((len(GRID), 2), 0.5, dtype=F64))
        masks = silhouettes(points, cameras[:2])[None]
        lens = torch.tensor([[1.875, 1.2]], dtype=F64)
        both = silhouette_costs(points[None], cameras[None], Views(cameras[None, :2], masks, focal_length=lens))
        for view in range(2):
            one = Views(cameras[None, :1], masks[:, view : view + 1], focal_length=float(lens[0, view]))
            torch.testing.assert_close(both[:, view : view + 1], silhouette_costs(points[None], cameras[None], one))

    def test_points_behind_the_camera_and_nonsense_cost_something_finite(self) -> None:
        points = torch.tensor([[[5.0, 0.0, 0.0], [float("nan"), 0.0, 0.0], [0.0, 0.0, 0.0]]], dtype=F64)
        cameras = GRID.cameras(torch.full((len(GRID), 2), 0.5, dtype=F64))
        assert silhouette_costs(points, cameras[None], Views(cameras, torch.ones(1, 2, 32, 32))).isfinite().all()


class TestBalance:
    def test_rows_are_probabilities_and_azimuths_are_used_alike(self) -> None:
        logits = torch.randn(60, 36, dtype=F64, generator=torch.Generator().manual_seed(0)) * 2
        logits[:, 4] += 3  # one direction that everyone likes
        assert logits.softmax(-1).sum(0)[4] > 12
        torch.testing.assert_close(balanced(logits, 12, 0.0), logits.softmax(-1))
        half = balanced(logits, 12, 0.5).sum(0)[4]
        shares = balanced(logits, 12)
        torch.testing.assert_close(shares.sum(-1), torch.ones(60, dtype=F64))
        assert shares.sum(0)[4] + 1 < half < logits.softmax(-1).sum(0)[4] - 1
        torch.testing.assert_close(
            shares.view(60, 3, 12).sum((0, 1)), torch.full((12,), 5.0, dtype=F64), atol=0.2, rtol=0
        )

    def test_nobody(self) -> None:
        assert balanced(torch.zeros(0, 36, dtype=F64), 12).shape == (0, 36)


class TestLoss:
    def scene(self) -> tuple[Tensor, Tensor, Views]:
        generator = torch.Generator().manual_seed(1)
        cameras = GRID.cameras(torch.rand(36, 2, dtype=F64, generator=generator))[[3, 9, 20, 31, 14, 26]].view(
            2, 3, 4, 4
        )
        masks = torch.stack([silhouettes(chair(), row) for row in cameras])
        beliefs = torch.randn(2, 3, 36, dtype=F64, generator=generator)
        return chair().repeat(2, 1, 1), beliefs, Views(torch.zeros_like(cameras), masks)

    def test_settled_search_finds_the_cameras_of_a_known_shape(self) -> None:
        points, _, views = self.scene()
        grid = DirectionGrid(24, 5, -20, 40)
        places = places_in_cells(len(grid), 14, 0, 3).to(F64)
        cameras = grid.cameras(places)[[3, 50, 97]]
        views = Views(torch.zeros(1, 3, 4, 4, dtype=F64), silhouettes(chair(), cameras)[None])
        beliefs = torch.zeros(1, 3, len(grid), dtype=F64)
        pose = PoseConfig(mode="predict", softness_end=0.01)
        found = search_loss(points[:1], beliefs, views, LOSS, pose, 0.9, keys=["chair/a"], step=3)
        known = training_loss(points[:1], Views(cameras[None], views.masks), LOSS)
        for name, term in known.terms.items():
            torch.testing.assert_close(found.terms[name], term)
        torch.testing.assert_close(found.terms["student"], torch.tensor(math.log(120), dtype=F64))

    def test_shape_and_belief_learn_apart(self) -> None:
        points, beliefs, views = self.scene()
        inputs = [points.requires_grad_(), beliefs.requires_grad_()]
        result = search_loss(*inputs, views, LOSS, POSE, 0.5, keys=["chair/a", "chair/b"])
        of_student = torch.autograd.grad(result.terms["student"], inputs, allow_unused=True, retain_graph=True)
        of_shape = torch.autograd.grad(result.terms["unary"] + result.terms["coverage"], inputs, allow_unused=True)
        assert of_student[0] is None and of_student[1].any() and of_shape[1] is None and of_shape[0].any()
        assert result.total.item() == pytest.approx(
            sum(
                getattr(LOSS, f"{name}_weight") * result.terms[name].item()
                for name in ("unary", "repulsion", "coverage", "crowding")
            )
            + POSE.student_weight * result.terms["student"].item()
        )

    def test_the_split_over_ranks_changes_nothing(self) -> None:
        points, beliefs, views = self.scene()
        together = search_loss(points, beliefs, views, LOSS, POSE, 0.2, keys=["chair/a", "chair/b"], step=4)
        kept: list[Tensor] = []

        def collect(rows: Tensor) -> tuple[Tensor, slice]:
            kept.append(rows)
            return rows, slice(0, len(rows))

        def part(row: int, gather) -> Tensor:  # type: ignore[no-untyped-def]
            mine = Views(views.world_to_camera[row : row + 1], views.masks[row : row + 1])
            return search_loss(
                points[row : row + 1], beliefs[row : row + 1], mine, LOSS, POSE, 0.2,
                keys=[f"chair/{'ab'[row]}"], step=4, gather=gather,
            ).total  # fmt: skip

        for row in range(2):
            part(row, collect)
        everything = torch.cat(kept)
        each = [part(row, lambda rows, row=row: (everything, slice(3 * row, 3 * row + 3))) for row in range(2)]
        torch.testing.assert_close((each[0] + each[1]) / 2, together.total)

    def test_views_that_are_not_there_change_nothing(self) -> None:
        points, beliefs, views = self.scene()
        short = Views(views.world_to_camera[:, :2], views.masks[:, :2])
        alone = search_loss(points, beliefs[:, :2], short, LOSS, POSE, 0.9, keys=["chair/a", "chair/b"])
        padded = views._replace(present=torch.tensor([[True, True, False]] * 2))
        padded.masks[:, 2] = 0
        result = search_loss(points, beliefs, padded, LOSS, POSE, 0.9, keys=["chair/a", "chair/b"])
        torch.testing.assert_close(result.total, alone.total)

    def test_draws_are_functions_of_seed_and_step(self) -> None:
        points, beliefs, views = self.scene()
        values = [
            search_loss(
                points, beliefs, views, LOSS, POSE, 0.0, keys=["chair/a", "chair/b"], seed=seed, step=step
            ).total
            for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0))
        ]
        assert values[0] == values[1] and values[0] != values[2] and values[0] != values[3]


def test_a_camera_of_the_grid_is_a_camera_from_angles() -> None:
    camera = DirectionGrid(4, 1, 10, 10).cameras(torch.zeros(4, 2, dtype=F64))[1]
    expected = world_to_camera_from_angles(
        torch.tensor(math.pi / 2, dtype=F64), torch.deg2rad(torch.tensor(10.0, dtype=F64))
    )
    torch.testing.assert_close(camera, expected)
