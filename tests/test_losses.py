"""The objective: its terms, gradients, frames, and input that is out of the ordinary."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from drwr_dist.camera import project, world_to_camera_from_angles, world_to_camera_from_position
from drwr_dist.config import LossConfig
from drwr_dist.losses import count_left_out, drwr_loss, sampling
from drwr_dist.losses.coverage import _nearest_of_all, coverage, silhouette_places
from drwr_dist.losses.crowding import crowding
from drwr_dist.losses.unary import unary_in_frame
from drwr_dist.silhouette import smooth_silhouette

F64 = torch.float64
BOTH = pytest.mark.parametrize("semantics", ["default", "released"])


def scene(
    batch: int = 2, views: int = 3, points: int = 9, size: int = 64, dtype: torch.dtype = F64
) -> tuple[Tensor, Tensor, Tensor]:
    """Return points [B, N, 3], cameras [B, V, 4, 4] and the discs [B, V, H, H] of a ball."""
    cloud = torch.rand(batch, points, 3, dtype=dtype) * 0.8 - 0.4
    cameras = world_to_camera_from_position(torch.randn(batch, views, 3, dtype=dtype))
    centres = (torch.arange(size, dtype=dtype) + 0.5) / size - 0.5
    disc = (centres[:, None] ** 2 + centres**2 < 0.28**2).to(dtype)
    return cloud, cameras, disc.expand(batch, views, size, size).clone()


class TestCoverage:
    def test_places_are_spread_evenly_over_the_mask(self) -> None:
        masks = scene()[2][0, :1]  # a disc
        places = silhouette_places(masks, 256)
        pixels = (places * 64).floor().long()
        assert (masks[0, pixels[..., 1], pixels[..., 0]] == 1).all()
        torch.testing.assert_close((pixels.double() + 0.5) / 64, places)
        pixel_centres = masks[0].nonzero().flip(-1).double().add(0.5)[None] / 64
        assert torch.cdist(pixel_centres, places).min(-1).values.max() < 4.0 / 64  # one place for 4 pixels

    def test_places_follow_the_mass_of_a_soft_mask(self) -> None:
        masks = torch.full((1, 16, 16), 0.25, dtype=F64)
        masks[..., :8] = 0.75
        left = silhouette_places(masks, 400)[..., 0] < 0.5
        assert left.double().mean() == pytest.approx(0.75, abs=0.01)

    @given(seed=st.integers(0, 2**31), count=st.integers(1, 40), n=st.integers(1, 30), neighbours=st.integers(1, 5))
    @settings(max_examples=30, deadline=None)
    def test_the_definition(self, seed: int, count: int, n: int, neighbours: int) -> None:
        """Each place asks for its nearest projections; where there are too few, the nearest count again."""
        generator = torch.Generator().manual_seed(seed)
        masks = (torch.rand(3, 16, 16, generator=generator, dtype=F64) - 0.5).clamp(0)
        xy = torch.rand(3, n, 2, generator=generator, dtype=F64) * 1.4 - 0.2
        valid = torch.rand(3, n, generator=generator) < 0.8
        valid[:, 0] = True
        result = coverage(xy, valid, masks, count, neighbours)
        places = silhouette_places(masks, count)
        for view in range(3):
            found = torch.cdist(places[view], xy[view][valid[view]]).sort(-1).values
            nearest = found[:, torch.arange(min(neighbours, n)) % found.shape[1]]
            expected = ((nearest**2 + 1e-6).sqrt() - 1e-3).mean()
            torch.testing.assert_close(result[view], expected, atol=1e-9, rtol=1e-7)

    def test_gradient(self) -> None:
        masks, valid = torch.rand(2, 16, 16, dtype=F64), torch.ones(2, 7, dtype=torch.bool)
        xy = torch.rand(2, 7, 2, dtype=F64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda p: coverage(p, valid, masks, 20, 3), (xy,))

    def test_empty_masks_and_views_without_points_cost_nothing(self) -> None:
        masks = torch.ones(2, 8, 8, dtype=F64)
        masks[0] = 0
        valid = torch.tensor([[True] * 4, [False] * 4])
        xy = torch.rand(2, 4, 2, dtype=F64, requires_grad=True)
        result = coverage(xy, valid, masks, 9)
        assert result.tolist() == [0, 0]
        assert (torch.autograd.grad(result.sum(), xy)[0] == 0).all()

    def test_tree_and_all_distances_agree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """CPUs ask a tree, GPUs measure all distances, in chunks of views and unharmed by autocast."""
        xy, valid, masks = torch.rand(5, 90, 2), torch.rand(5, 90) < 0.5, torch.rand(5, 32, 32)
        valid[2] = False
        valid[3] = torch.arange(90) < 2  # fewer than are asked for
        by_tree = coverage(xy, valid, masks, 60, 3)
        monkeypatch.setattr("drwr_dist.losses.coverage._nearest", _nearest_of_all)
        for room in (0, 2**26):
            monkeypatch.setattr("drwr_dist.losses.coverage._WORKING_SET", room)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                torch.testing.assert_close(coverage(xy, valid, masks, 60, 3), by_tree)


class TestSampling:
    def test_pixel_centres_do_not_depend_on_the_grid(self) -> None:
        """A linear image is read without error at every grid: half-pixel centres, averaged areas."""
        size = 64
        ramp = ((torch.arange(size, dtype=F64) + 0.5) / size).expand(size, size)
        xy = torch.rand(1, 100, 2, dtype=F64) * 0.8 + 0.1
        for grid in (16, 32, 64):
            for axis, image in ((0, ramp), (1, ramp.T)):
                averaged = sampling.area_average(image[None], grid)
                read = sampling.bilinear_in_border(averaged, sampling.pixel_coordinates(xy, grid))
                torch.testing.assert_close(read, xy[..., axis])

    def test_borders(self) -> None:
        image = torch.ones(1, 4, 4, dtype=F64)
        u = torch.tensor([-9.0, -1.0, -0.5, 0.0, 3.0, 3.5, 4.0, 99.0], dtype=F64)
        coordinates = torch.stack((u, torch.full_like(u, 1.5)), dim=-1)[None]
        expected = torch.tensor([[0, 0, 0.5, 1, 1, 0.5, 0, 0]], dtype=F64)
        torch.testing.assert_close(sampling.bilinear_in_zeros(image, coordinates), expected)
        border = sampling.bilinear_in_border(image, coordinates)
        torch.testing.assert_close(border, torch.ones(1, 8, dtype=F64))

    def test_our_samples_are_the_released_ones_away_from_borders(self) -> None:
        image = torch.rand(2, 32, 32, dtype=F64)
        coordinates = torch.rand(2, 50, 2, dtype=F64) * 20 + 5.5
        released = sampling.released_samples(image, coordinates, 5)
        torch.testing.assert_close(sampling.bilinear_in_zeros(image, coordinates), released[..., 0])

    def test_released_borders(self) -> None:
        """At the left and bottom the border pixel, at the right and top nothing: weights are not renormalised."""
        image = torch.rand(1, 8, 8, dtype=F64) + 1
        corners = torch.tensor([[[0.0, 0.0], [7, 3], [3, 7], [0, 3]]], dtype=F64)
        read = sampling.released_samples(image, corners, 1)[0, :, 0]
        torch.testing.assert_close(read, torch.stack((image[0, 0, 0], read[1] * 0, read[2] * 0, image[0, 3, 0])))

    @pytest.mark.parametrize("sampler", ["border", "zeros", "released"])
    def test_gradient(self, sampler: str) -> None:
        image = torch.rand(1, 8, 8, dtype=F64)
        function = {
            "border": lambda c: sampling.bilinear_in_border(image, c),
            "zeros": lambda c: sampling.bilinear_in_zeros(image, c),
            "released": lambda c: sampling.released_samples(image, c, 3),
        }[sampler]
        places = torch.tensor([[[0.3, 6.6], [3.4, 2.2], [6.7, 6.8], [-0.6, 3.3], [9.4, -2.2]]], dtype=F64)
        if sampler == "released":
            places = places[:, :3]
        assert torch.autograd.gradcheck(function, (places.requires_grad_(),))

    def test_unary_draws_points_back_into_the_frame(self) -> None:
        smooth = torch.full((1, 8, 8), 0.25, dtype=F64)
        coordinates = torch.tensor([[[3.0, 4.0], [-1.0, 3.0], [10.0, 11.0]]], dtype=F64, requires_grad=True)
        unary = unary_in_frame(smooth, coordinates)
        distance = torch.tensor([[0.0, 1, 5]], dtype=F64) / 8
        torch.testing.assert_close(unary, 0.75 + 2**0.5 * distance)
        (gradient,) = torch.autograd.grad(unary.sum(), coordinates)
        expected = torch.tensor([[[0.0, 0], [-1, 0], [0.6, 0.8]]], dtype=F64) * 2**0.5 / 8
        torch.testing.assert_close(gradient, expected)


class TestObjective:
    @BOTH
    @pytest.mark.parametrize("method", ["plain", "fourier"])
    def test_gradient_in_points_and_cameras(self, semantics: str, method: str) -> None:
        points, cameras, masks = scene(batch=1, views=2, points=5)
        masks = torch.rand_like(masks)
        smooth = torch.rand_like(masks) * 0.8
        focal = torch.tensor([[1.6, 1.875]], dtype=F64, requires_grad=True)

        def total(points: Tensor, cameras: Tensor, focal: Tensor) -> Tensor:
            return drwr_loss(
                points, cameras, masks, smooth, focal_length=focal, grid=16, semantics=semantics, method=method
            ).total

        inputs = (points.requires_grad_(), cameras.requires_grad_(), focal)
        assert torch.autograd.gradcheck(total, inputs, eps=1e-7)

    @BOTH
    @pytest.mark.parametrize(("dtype", "limit"), [(F64, 1e-10), (torch.float32, 2e-5)])
    def test_methods_agree(self, semantics: str, dtype: torch.dtype, limit: float) -> None:
        points, cameras, masks = scene(points=200, dtype=dtype)
        points = (1.6 * points).requires_grad_()  # some leave the frame
        losses, gradients = [], []
        for method in ("plain", "fourier", "auto"):
            loss = drwr_loss(points, cameras, masks, grid=32, semantics=semantics, method=method)
            losses.append(torch.stack(loss))
            gradients.append(torch.autograd.grad(loss.total, points)[0])
        for i in (1, 2):
            torch.testing.assert_close(losses[i], losses[0], atol=limit, rtol=limit)
            torch.testing.assert_close(gradients[i], gradients[0], atol=limit, rtol=limit)

    @BOTH
    def test_the_definition(self, semantics: str) -> None:
        """Total from its parts; a batch is the mean of its objects; smooth None is the smooth silhouette."""
        points, cameras, masks = scene()
        config = LossConfig(unary_weight=0.7, repulsion_weight=0.3, coverage_weight=0.0, crowding_weight=0.0)
        loss = drwr_loss(points, cameras, masks, semantics=semantics, config=config)
        torch.testing.assert_close(loss.total, 0.7 * loss.unary + 0.3 * loss.repulsion)
        each = [
            drwr_loss(points[b : b + 1], cameras[b : b + 1], masks[b : b + 1], semantics=semantics) for b in range(2)
        ]
        torch.testing.assert_close(loss.unary, (each[0].unary + each[1].unary) / 2)
        torch.testing.assert_close(loss.repulsion, (each[0].repulsion + each[1].repulsion) / 2)
        given = drwr_loss(points, cameras, masks, smooth_silhouette(masks), semantics=semantics)
        torch.testing.assert_close(given.unary, loss.unary)

    def test_weights_without_a_config(self) -> None:
        points, cameras, masks = scene()
        released = drwr_loss(points, cameras, masks, semantics="released")
        torch.testing.assert_close(released.total, released.unary + 3 * released.repulsion)
        ours, weights = drwr_loss(points, cameras, masks), LossConfig()
        xy, _ = project(points[:, None], cameras)
        xy = xy.flatten(0, 1)
        covered = coverage(xy, xy.isfinite().all(-1), masks.flatten(0, 1), weights.coverage_places, 4).mean()
        crowded = crowding(points, torch.ones(points.shape[:2], dtype=torch.bool), weights.crowding_radius).mean()
        expected = weights.unary_weight * ours.unary + weights.repulsion_weight * ours.repulsion
        expected = expected + weights.coverage_weight * covered + weights.crowding_weight * crowded
        torch.testing.assert_close(ours.total, expected)

    @pytest.mark.parametrize("grid", [32, 64])
    @pytest.mark.parametrize("width", [20, 60])
    def test_our_repulsion_is_below_one_for_even_cover(self, grid: int, width: int) -> None:
        """Somewhat, by what is missing beyond the edges; whatever the shape, the grid and the number of points."""
        cameras = torch.eye(4, dtype=F64)[None, None].clone()
        cameras[..., 2, 3] = 2
        masks = torch.zeros(1, 1, 128, 128, dtype=F64)
        masks[..., 20:110, 64 - width // 2 : 64 + width // 2] = 1
        xy = silhouette_places(masks[0], 1500)
        points = torch.cat(((xy - 0.5) * 2 / 1.875, torch.zeros(1, 1500, 1, dtype=F64)), dim=-1)
        assert drwr_loss(points, cameras, masks, grid=grid).repulsion == pytest.approx(0.8, abs=0.25)

    def test_coverage_draws_a_point_to_a_part_that_has_none(self) -> None:
        """All points in one half of the silhouette: without the term, the other half has no say."""
        cameras = torch.eye(4, dtype=F64)[None, None].clone()
        cameras[..., 2, 3] = 2
        masks = torch.zeros(1, 1, 64, 64, dtype=F64)
        masks[..., 20:44, 8:56] = 1
        points = (torch.rand(1, 40, 3, dtype=F64) * 0.1 - 0.3).requires_grad_()
        pulls = []
        for weight in (0.0, 1.0):
            config = LossConfig(repulsion_weight=0.0, coverage_weight=weight, crowding_weight=0.0)
            loss = drwr_loss(points, cameras, masks, config=config)
            pulls.append(-torch.autograd.grad(loss.total, points)[0][..., 0].sum())
        assert pulls[1] > pulls[0] + 0.1

    @BOTH
    def test_points_inside_cost_nothing_and_spread_lowers_the_repulsion(self, semantics: str) -> None:
        _, cameras, masks = scene(batch=1)
        tight = torch.randn(1, 60, 3, dtype=F64) * 0.01
        wide = torch.nn.functional.normalize(torch.randn(1, 60, 3, dtype=F64), dim=-1) * 0.2
        first = drwr_loss(tight, cameras, masks, semantics=semantics)
        second = drwr_loss(wide, cameras, masks, semantics=semantics)
        assert first.unary < 1e-12
        assert second.unary < 1e-12
        assert second.repulsion < 0.5 * first.repulsion

    @BOTH
    def test_the_frame_is_not_mirrored(self, semantics: str) -> None:
        """A mask in the upper right of the image wants points that are up and to the right of the camera."""
        cameras = world_to_camera_from_angles(torch.zeros(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64))
        masks = torch.zeros(1, 1, 64, 64, dtype=F64)
        masks[..., 4:28, 36:60] = 1
        unaries = {}
        for up in (-1, 1):
            for right in (-1, 1):  # seen from +X, right is -Z
                points = torch.tensor([[[0.0, 0.25 * up, -0.25 * right]]], dtype=F64)
                unaries[up, right] = drwr_loss(points, cameras, masks, semantics=semantics).unary.item()
        assert unaries[1, 1] == pytest.approx(0, abs=1e-12)
        assert all(value > 0.3 for corner, value in unaries.items() if corner != (1, 1))

    @BOTH
    @pytest.mark.parametrize("method", ["plain", "fourier"])
    @given(seed=st.integers(0, 2**31), bad=st.integers(0, 5), depth=st.sampled_from([-9.0, -2.0, -1.995]))
    @settings(max_examples=15, deadline=None)
    def test_points_behind_the_camera_are_left_out(
        self, semantics: str, method: str, seed: int, bad: int, depth: float
    ) -> None:
        """As if they weren't there."""
        torch.manual_seed(seed)
        points, _, masks = scene(batch=1, views=1)
        cameras = torch.eye(4, dtype=F64)[None, None].clone()
        cameras[..., 2, 3] = 2
        behind = torch.full((1, bad, 3), depth, dtype=F64)
        mixed = torch.cat((behind, points), dim=1).requires_grad_()
        loss = drwr_loss(mixed, cameras, masks, semantics=semantics, method=method)
        expected = drwr_loss(points, cameras, masks, semantics=semantics, method=method)
        torch.testing.assert_close(torch.stack(loss), torch.stack(expected))
        (gradient,) = torch.autograd.grad(loss.total, mixed)
        assert gradient.isfinite().all()
        assert (gradient[:, :bad] == 0).all()
        assert (gradient[:, bad:] != 0).any()
        assert count_left_out(mixed, cameras).tolist() == [[bad]]

    @BOTH
    def test_no_point_left(self, semantics: str) -> None:
        points, cameras, masks = scene()
        cameras = torch.eye(4, dtype=F64).expand_as(cameras)  # the camera stands in the origin
        points = torch.full_like(points, -0.5).requires_grad_()
        loss = drwr_loss(points, cameras, masks, semantics=semantics)
        assert loss.total == 0
        assert (torch.autograd.grad(loss.total, points)[0] == 0).all()

    @BOTH
    @pytest.mark.parametrize("broken", ["camera", "focal length"])
    def test_a_camera_that_is_not_finite_shows_where_it_counts(self, semantics: str, broken: str) -> None:
        points, cameras, masks = scene()
        focal = torch.full(masks.shape[:2], 1.875, dtype=points.dtype)
        (cameras if broken == "camera" else focal)[0, 1] = math.nan
        arguments = {"semantics": semantics, "focal_length": focal}
        assert torch.stack(drwr_loss(points, cameras, masks, **arguments)).isnan().all()
        present = torch.ones(masks.shape[:2], dtype=torch.bool)
        present[0, 1] = False  # what stands where no view is counts for nothing
        assert torch.stack(drwr_loss(points, cameras, masks, view_mask=present, **arguments)).isfinite().all()

    @BOTH
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_coordinate_that_is_not_finite_shows_in_every_result(self, semantics: str, value: float) -> None:
        points, cameras, masks = scene()
        points[0, 3, 1] = value
        assert torch.stack(drwr_loss(points, cameras, masks, semantics=semantics)).isnan().all()

    @BOTH
    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_masks_of_one_value(self, semantics: str, value: float) -> None:
        points, cameras, masks = scene()
        points = (points / 2).requires_grad_()  # within the frame
        loss = drwr_loss(points, cameras, torch.full_like(masks, value), semantics=semantics)
        torch.testing.assert_close(loss.unary, torch.tensor(1 - value, dtype=F64))
        assert (loss.repulsion > 0) == (value == 1)
        assert torch.autograd.grad(loss.total, points)[0].isfinite().all()

    @BOTH
    def test_points_far_out_of_the_frame(self, semantics: str) -> None:
        _, _, masks = scene(batch=1, views=1)
        cameras = world_to_camera_from_angles(torch.zeros(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64))
        points = torch.tensor([[[0.0, 40.0, 3.0], [-3.0, -7.0, 9.0], [0.0, 0.0, 0.1]]], dtype=F64)
        points.requires_grad_()
        loss = drwr_loss(points, cameras, masks, semantics=semantics)
        (gradient,) = torch.autograd.grad(loss.total, points)
        assert gradient.isfinite().all()
        drawn_back = gradient[0, :2].abs().sum(-1) > 0
        assert (drawn_back == (semantics == "default")).all()

    def test_dtypes(self) -> None:
        points, cameras, masks = scene()
        assert drwr_loss(points.float(), cameras, masks).total.dtype == torch.float32
        assert drwr_loss(points, cameras.float(), masks.bool()).total.dtype == F64
        half = drwr_loss(points.bfloat16(), cameras.float(), masks.float())
        assert half.total.dtype == torch.float32

    def test_wrong_input_is_named(self) -> None:
        points, cameras, masks = scene()
        with pytest.raises(ValueError, match=r"grid must divide .* 64 .* got 48"):
            drwr_loss(points, cameras, masks, grid=48)
        with pytest.raises(ValueError, match="got 128"):
            drwr_loss(points, cameras, masks, grid=128)
        with pytest.raises(ValueError, match=r"points .*got \[9, 3\]"):
            drwr_loss(points[0], cameras, masks)
        with pytest.raises(ValueError, match=r"N ≥ 1.*\[2, 0, 3\]"):
            drwr_loss(points[:, :0], cameras, masks)
        with pytest.raises(ValueError, match=r"masks .*got \[2, 3, 64, 63\]"):
            drwr_loss(points, cameras, masks[..., 1:])
        with pytest.raises(ValueError, match="uint8"):
            drwr_loss(points, cameras, masks.to(torch.uint8))
        with pytest.raises(ValueError, match=r"\[2, 3, 4, 4\], got \[2, 2, 4, 4\]"):
            drwr_loss(points, cameras[:, 1:], masks)
        with pytest.raises(ValueError, match="differ in B"):
            drwr_loss(points[:1], cameras, masks)
        with pytest.raises(ValueError, match=r"smooth must be .*got \[2, 3, 32, 32\]"):
            drwr_loss(points, cameras, masks, masks[..., ::2, ::2])
        with pytest.raises(ValueError, match=r"focal_length .*\[2, 3\]; got \[2\]|focal_length .*got \[2\]"):
            drwr_loss(points, cameras, masks, focal_length=torch.ones(2, dtype=F64))
        with pytest.raises(ValueError, match=r"semantics .*'ours'"):
            drwr_loss(points, cameras, masks, semantics="ours")
