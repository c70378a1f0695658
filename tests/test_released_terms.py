"""The other terms of the released code: against plain loops over their formulas, gradients, random draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from drwr_dist.camera import project, world_to_camera_from_angles, world_to_camera_from_position
from drwr_dist.losses import chamfer_2d as module
from drwr_dist.losses import sampling
from drwr_dist.losses.chamfer_2d import chamfer_2d, silhouette_draws
from drwr_dist.losses.draws import kept_points, uniform_numbers
from drwr_dist.losses.spread import spread
from drwr_dist.losses.views import mean_over_views
from drwr_dist.losses.volumetric import blur_matrix, ray_silhouettes, splat, volumetric, voxel_coordinates

F64 = torch.float64
BOTH = pytest.mark.parametrize("semantics", ["default", "released"])


def projected(views: int, points: int, size: float = 0.9) -> tuple[Tensor, Tensor]:
    """Return frame coordinates [L, N, 2] and depths about the cube's centre [L, N] of random points."""
    cloud = (torch.rand(1, points, 3, dtype=F64) - 0.5) * size
    cameras = world_to_camera_from_position(torch.randn(views, 3, dtype=F64))
    xy, depth = project(cloud, cameras)
    return xy, depth - 2


def plain_dpc(xyz2: np.ndarray, mask: np.ndarray, scale: float, vox: int, sigma: float, kernel: int) -> float:
    """Return the released loss of one view, written as the method states it: xyz2 [N, 3] = (depth - 2, y up, x)."""
    voxels = np.zeros((vox, vox, vox))
    for point in xyz2[(np.abs(xyz2) <= 0.5).all(-1)]:
        place = (point + 0.5) * (vox - 1)
        for corner in itertools.product((0, 1), repeat=3):
            index = np.floor(place).astype(int) + corner
            share = np.prod(np.where(corner, place % 1, 1 - place % 1))
            if share > 0:
                voxels[tuple(index)] += share
    voxels = np.clip(voxels, 0, 1)
    x = np.arange(kernel) - kernel // 2
    weights = np.exp(-(x**2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in range(3):
        padded = np.pad(voxels, [(kernel // 2,) * 2 if a == axis else (0, 0) for a in range(3)])
        voxels = sum(w * np.take(padded, range(k, k + vox), axis) for k, w in enumerate(weights))
    v = np.clip(np.clip(voxels * scale, 0, 1), 1e-5, 1 - 1e-5)
    silhouette = np.zeros((vox, vox))
    for k in range(vox):  # the event that the ray ends in voxel k
        silhouette += v[k] * np.prod(1 - v[:k], axis=0)
    silhouette = silhouette[::-1]
    step = len(mask) // vox
    return 0.5 * float(((mask[::step, ::step] - silhouette) ** 2).sum())


class TestVolumetric:
    @pytest.mark.parametrize(("sigma", "kernel", "size"), [(3.0, 21, 0.9), (0.2, 21, 0.9), (1.1, 5, 1.6)])
    def test_the_released_formula(self, sigma: float, kernel: int, size: float) -> None:
        xy, depth = projected(3, 40, size)
        masks = (torch.rand(3, 32, 32, dtype=F64) < 0.4).to(F64)
        scale = torch.tensor([1.0, 0.5, 0.9], dtype=F64)
        result = volumetric(xy, depth, masks, scale, 8, sigma, kernel, "released")
        for view in range(3):
            xyz2 = torch.stack((depth[view], 0.5 - xy[view, :, 1], xy[view, :, 0] - 0.5), -1).numpy()
            expected = plain_dpc(xyz2, masks[view].numpy(), float(scale[view]), 8, sigma, kernel)
            assert result[view].item() == pytest.approx(expected, rel=1e-9)

    @BOTH
    def test_gradient(self, semantics: str) -> None:
        xy, depth = projected(2, 12)
        masks = torch.rand(2, 16, 16, dtype=F64)
        scale = torch.rand(2, dtype=F64) * 0.5 + 0.3

        def loss(xy: Tensor, depth: Tensor, scale: Tensor) -> Tensor:
            return volumetric(xy, depth, masks, scale, 8, 0.8, 7, semantics)

        assert torch.autograd.gradcheck(loss, (xy.requires_grad_(), depth.requires_grad_(), scale.requires_grad_()))

    @BOTH
    def test_the_silhouette_is_where_the_points_are(self, semantics: str) -> None:
        """A ball up and to the right of the camera gives a disc in the upper right of the image, like its mask."""
        camera = world_to_camera_from_angles(torch.zeros(1, dtype=F64), torch.zeros(1, dtype=F64))
        ball = torch.nn.functional.normalize(torch.randn(1, 4000, 3, dtype=F64), dim=-1) * 0.12
        ball += torch.tensor([0.0, 0.25, -0.25])  # seen from +X, right is -Z
        xy, depth = project(ball, camera)
        (silhouette,) = ray_silhouettes(xy, depth - 2, None, 32, 0.5, semantics=semantics)
        rows, columns = torch.nonzero(silhouette > 0.5).double().mean(0)
        centre = 1.875 * 0.25 / 2
        assert columns.item() == pytest.approx((0.5 + centre) * 32 - 0.5, abs=1)
        assert rows.item() == pytest.approx((0.5 - centre) * 32 - 0.5, abs=1)

    def test_default_and_released_agree_about_a_centred_shape(self) -> None:
        camera = world_to_camera_from_angles(torch.zeros(1, dtype=F64), torch.zeros(1, dtype=F64))
        ball = torch.nn.functional.normalize(torch.randn(1, 4000, 3, dtype=F64), dim=-1) * 0.3
        xy, depth = project(ball, camera)
        areas = [ray_silhouettes(xy, depth - 2, None, 32, 1.0, semantics=s).sum() for s in ("default", "released")]
        assert areas[0].item() == pytest.approx(areas[1].item(), rel=0.1)

    @BOTH
    def test_points_out_of_the_grid_count_for_nothing(self, semantics: str) -> None:
        xy, depth = projected(2, 20)
        masks = torch.rand(2, 16, 16, dtype=F64)
        expected = volumetric(xy, depth, masks, None, 8, 1.0, semantics=semantics)
        strays = torch.tensor([[1.01, 0.5], [0.5, -0.2], [math.inf, math.inf], [0.5, 0.5]], dtype=F64)
        stray_depths = torch.tensor([0.0, 0.0, -2.5, 0.51], dtype=F64)
        more = torch.cat((xy, strays.expand(2, -1, -1)), 1).requires_grad_()
        depths = torch.cat((depth, stray_depths.expand(2, -1)), 1).requires_grad_()
        result = volumetric(more, depths, masks, None, 8, 1.0, semantics=semantics)
        torch.testing.assert_close(result, expected)
        gradients = torch.autograd.grad(result.sum(), (more, depths))
        assert all(g.isfinite().all() and (g[:, -4:] == 0).all() for g in gradients)

    def test_splat_keeps_the_mass(self) -> None:
        xy, depth = projected(2, 30, 0.7)
        voxels = splat(*voxel_coordinates(xy, depth, 16, "released"), 16)
        torch.testing.assert_close(voxels.sum((1, 2, 3)), torch.full((2,), 30.0, dtype=F64))

    @pytest.mark.parametrize(("sigma", "kernel"), [(3.0, 21), (0.2, 21), (2.0, 3)])
    def test_the_blur_is_the_convolution(self, sigma: float, kernel: int) -> None:
        signal = torch.rand(1, 1, 32, dtype=F64)
        x = torch.arange(kernel, dtype=F64) - kernel // 2
        weights = (-(x**2) / (2 * sigma**2)).exp()
        expected = torch.nn.functional.conv1d(signal, (weights / weights.sum())[None, None], padding=kernel // 2)
        torch.testing.assert_close(signal @ blur_matrix(32, sigma, kernel), expected)

    def test_chunks_of_views_and_autocast_do_not_show(self, monkeypatch: pytest.MonkeyPatch) -> None:
        xy, depth = (t.float().requires_grad_() for t in projected(5, 50))
        masks, results = torch.rand(5, 32, 32), []
        for working_set in (2**28, 0):
            monkeypatch.setattr("drwr_dist.losses.volumetric._WORKING_SET", working_set)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = volumetric(xy, depth, masks, torch.ones(5), 16, 2.0)
            results.append((value, *torch.autograd.grad(value.sum(), (xy, depth))))
        for together, chunked in zip(*results, strict=True):
            torch.testing.assert_close(chunked, together)


class TestSpread:
    def plain(self, coordinates: Tensor, weights: Tensor, vox: int) -> tuple[float, float]:
        """Return both terms of one view, pair by pair."""
        n = len(coordinates)
        energy = []
        for i in range(n):
            total = sum(float((coordinates[i] - coordinates[j]).square().sum()) / vox * weights[j] for j in range(n))
            energy.append(float(weights[i] * total / n))
        clipped = [min(max(e, 1e-5), vox) for e in energy]
        shares = [e / sum(clipped) for e in clipped]
        entropy = -sum(p * math.log(p) for p in shares)
        return -sum(energy) / n, -entropy

    def test_the_released_formula(self) -> None:
        coordinates = torch.rand(3, 15, 2, dtype=F64) * 31
        weights = torch.rand(3, 15, dtype=F64)
        weights[:, :4] = 0  # out of the silhouette
        results = spread(coordinates, weights, torch.ones(3, 15, dtype=torch.bool), 32)
        for view in range(3):
            for result, expected in zip(results, self.plain(coordinates[view], weights[view], 32), strict=True):
                assert result[view].item() == pytest.approx(expected, rel=1e-9)

    def test_gradient(self) -> None:
        coordinates = (torch.rand(2, 7, 2, dtype=F64) * 31).requires_grad_()
        weights = (torch.rand(2, 7, dtype=F64) + 0.1).requires_grad_()
        valid = torch.ones(2, 7, dtype=torch.bool)
        assert torch.autograd.gradcheck(lambda c, w: spread(c, w, valid, 32), (coordinates, weights))

    def test_points_left_out_are_as_if_not_there(self) -> None:
        coordinates, weights = torch.rand(1, 9, 2, dtype=F64) * 31, torch.rand(1, 9, dtype=F64)
        valid = torch.arange(9)[None] >= 3
        weights = weights * valid
        coordinates.requires_grad_()
        some = spread(coordinates, weights, valid, 32)
        others = spread(coordinates[:, 3:], weights[:, 3:], valid[:, 3:], 32)
        for a, b in zip(some, others, strict=True):
            torch.testing.assert_close(a, b)
        gradient = torch.autograd.grad(some[0].sum() + some[1].sum(), coordinates)[0]
        assert gradient.isfinite().all() and (gradient[:, :3].abs() < 1e-12).all()

    def test_nothing_left(self) -> None:
        coordinates = torch.rand(1, 4, 2, dtype=F64, requires_grad=True)
        results = spread(coordinates, torch.zeros(1, 4, dtype=F64), torch.zeros(1, 4, dtype=torch.bool), 32)
        assert [r.item() for r in results] == [0, 0]
        assert torch.autograd.grad(results[0].sum() + results[1].sum(), coordinates)[0].isfinite().all()

    def test_each_term_falls_when_points_move_apart(self) -> None:
        angle = torch.arange(20, dtype=F64) / 20 * 2 * math.pi
        ring = torch.stack((angle.cos(), angle.sin()), -1)[None]
        valid, weights = torch.ones(1, 20, dtype=torch.bool), torch.ones(1, 20, dtype=F64)
        near, far = spread(3 * ring + 16, weights, valid, 32), spread(9 * ring + 16, weights, valid, 32)
        assert far[0] < near[0]
        uneven = torch.cat((ring[:, :10] * 9, ring[:, 10:] * 0.1), 1) + 16
        assert far[1] < spread(uneven, weights, valid, 32)[1]  # on a ring all are equally far: largest entropy


class TestChamfer2d:
    def test_the_released_formula(self) -> None:
        coordinates, targets = torch.rand(3, 12, 2, dtype=F64) * 31, torch.rand(3, 17, 2, dtype=F64) * 31
        valid = torch.rand(3, 12) < 0.7
        valid[:, 0] = True
        result = chamfer_2d(coordinates, valid, targets)
        for view in range(3):
            points = coordinates[view][valid[view]]
            distances = torch.cdist(points, targets[view])
            expected = (distances.min(1).values.mean() + distances.min(0).values.mean()) / 2
            torch.testing.assert_close(result[view], expected)

    def test_gradient(self) -> None:
        targets, valid = torch.rand(2, 9, 2, dtype=F64) * 31, torch.ones(2, 6, dtype=torch.bool)
        coordinates = (torch.rand(2, 6, 2, dtype=F64) * 31).requires_grad_()
        assert torch.autograd.gradcheck(lambda c: chamfer_2d(c, valid, targets), (coordinates,))
        same = targets[:, :6].clone().requires_grad_()  # distances of 0
        assert torch.autograd.grad(chamfer_2d(same, valid, targets).sum(), same)[0].isfinite().all()

    def test_blocks_find_what_trees_find(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """GPUs compare all distances, in blocks of views; the CPU asks k-d trees."""
        coordinates, targets = torch.rand(5, 40, 2) * 31, torch.rand(5, 50, 2) * 31
        valid = torch.rand(5, 40) < 0.7
        found = module._nearest(coordinates, valid, targets)
        for working_set in (2**26, 0):
            monkeypatch.setattr(module, "_WORKING_SET", working_set)
            in_blocks = module._nearest_in_blocks(coordinates, valid, targets)
            assert torch.equal(in_blocks[0][valid], found[0][valid])
            assert torch.equal(in_blocks[1], found[1])

    def test_nothing_left(self) -> None:
        coordinates = torch.rand(1, 4, 2, dtype=F64, requires_grad=True)
        result = chamfer_2d(coordinates, torch.zeros(1, 4, dtype=torch.bool), torch.rand(1, 5, 2, dtype=F64))
        assert result.item() == 0
        assert (torch.autograd.grad(result.sum(), coordinates)[0] == 0).all()

    def test_draws_lie_in_the_silhouette_and_cover_it(self) -> None:
        images = torch.zeros(2, 16, 16, dtype=F64)
        images[0, 2:6, 8:14] = 1
        images[1, 12:, :4] = 0.5
        images[1, :4, :4] = 0.25
        numbers = torch.rand(2, 4000, 3, dtype=F64)
        for jitter in (False, True):
            pixels = silhouette_draws(images, numbers, jitter).round().long()
            counts = torch.zeros(2, 16, 16)
            for view in range(2):
                np.add.at(counts[view].numpy(), (pixels[view, :, 1].numpy(), pixels[view, :, 0].numpy()), 1)
            assert ((counts > 0) == (images > 0)).all()
            share = counts[1, 12:].sum() / 4000
            assert share.item() == pytest.approx(2 / 3, abs=0.04)  # as likely as the mask is opaque
        assert (silhouette_draws(images, numbers, False) % 1 == 0).all()
        within = silhouette_draws(images, numbers, True) - silhouette_draws(images, numbers, False)
        assert within.min() < -0.49 and within.max() > 0.49 and abs(within.mean()) < 0.02  # all over the pixel

    def test_released_draws_fit_the_released_coordinates(self) -> None:
        """A point that projects onto a pixel of the released image is at distance 0 from a draw of that pixel."""
        masks = torch.zeros(1, 128, 128, dtype=F64)
        masks[0, 40, 80] = 1
        image = sampling.released_image(masks, 32)
        draw = silhouette_draws(image, torch.rand(1, 1, 3, dtype=F64), False)
        place = sampling.released_coordinates(torch.tensor([[[20 / 31, 10 / 31]]], dtype=F64), 32)
        assert draw.tolist() == [[[20, 21]]]
        torch.testing.assert_close(draw, place)


class TestDraws:
    def test_points_kept(self) -> None:
        first = kept_points(1000, 0.07, 3, 5)
        assert len(first) == 70 and len(set(first.tolist())) == 70 and first.max() < 1000
        assert torch.equal(first, kept_points(1000, 0.07, 3, 5))
        assert not torch.equal(first, kept_points(1000, 0.07, 3, 6))
        assert not torch.equal(first, kept_points(1000, 0.07, 4, 5))
        assert torch.equal(kept_points(9, 1.0, 0, 0), torch.arange(9))
        assert len(kept_points(9, 0.01, 0, 0)) == 1

    def test_numbers_depend_on_the_sample_and_not_on_its_place(self) -> None:
        both = uniform_numbers(["chair/a", "chair/b"], 3, 5, 1, 2)
        assert both.shape == (2, 3, 5, 3)
        assert torch.equal(uniform_numbers(["chair/b"], 3, 5, 1, 2)[0], both[1])
        assert torch.equal(uniform_numbers(["chair/b"], 2, 5, 1, 2)[0], both[1, :2])
        others = [uniform_numbers(["chair/b"], 3, 5, *where) for where in ((1, 3), (2, 2))]
        assert not any(torch.equal(other[0], both[1]) for other in others)
        assert uniform_numbers([], 3, 5, 1, 2).shape == (0, 3, 5, 3)


def test_mean_over_views() -> None:
    values = torch.tensor([[1.0, 3.0], [5.0, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    mean = mean_over_views(values, mask)
    assert mean == 3.5
    assert torch.autograd.grad(mean, values)[0].tolist() == [[0.25, 0.25], [0.5, 0.0]]
    assert mean_over_views(values[:1]) == 2
    with pytest.raises(ValueError, match=r"view_mask must be \[2, 2\], got \[1, 2\]"):
        mean_over_views(values, mask[:1])
