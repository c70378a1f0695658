"""What training minimises: the terms whose weight is above 0, each times its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from drwr_dist.camera import FOCAL_LENGTH, project
from drwr_dist.config import LossConfig
from drwr_dist.losses import sampling
from drwr_dist.losses.chamfer_2d import chamfer_2d, silhouette_draws
from drwr_dist.losses.draws import kept_points, uniform_numbers
from drwr_dist.losses.objective import drwr_loss
from drwr_dist.losses.spread import spread
from drwr_dist.losses.views import mean_over_views
from drwr_dist.losses.volumetric import volumetric

# The terms that the released code holds with weight 0, and their weights' keys.
OTHER_TERMS = {
    "volumetric": "volumetric_weight",
    "sum": "sum_weight",
    "entropy": "entropy_weight",
    "chamfer_2d": "chamfer_2d_weight",
}


class TrainingLoss(NamedTuple):
    """The objective and its parts, scalars."""

    total: Tensor
    terms: dict[str, Tensor]  # unweighted; those in use


def training_loss(
    points: Tensor,  # [B, N, 3]
    world_to_camera: Tensor,  # [B, V, 4, 4]
    masks: Tensor,  # [B, V, H, H]
    smooth: Tensor | None,  # [B, V, H, H]
    config: LossConfig,
    *,
    focal_length: float | Tensor = FOCAL_LENGTH,
    view_mask: Tensor | None = None,  # [B, V]
    scale: Tensor | None = None,  # [B]
    keys: Sequence[str] = (),
    seed: int = 0,
    step: int = 0,
) -> TrainingLoss:
    """Evaluate the objective that `config` describes; `drwr_loss` has the conventions.

    Args:
        points: [B, N, 3], object frame.
        world_to_camera: [B, V, 4, 4].
        masks: [B, V, H, H] in [0, 1].
        smooth: [B, V, H, H], smooth silhouettes; None computes them.
        config: weights and constants of this step (schedules are the caller's).
        focal_length: widths of the frame, a number or [B, V].
        view_mask: [B, V], True where there is a view; None: everywhere.
        scale: [B], factor of the occupancies in the volumetric term; None: 1.
        keys: [B], what the objects are called: with seed and step they decide what is drawn in the silhouettes.
        seed: of the run.
        step: from 0.

    Raises:
        ValueError: a shape does not fit.
    """
    terms: dict[str, Tensor] = {}
    total = torch.where(points.isfinite().all(), 0.0, torch.nan).to(points.dtype)
    if config.keep_points < 1:
        points = points[:, kept_points(points.shape[1], config.keep_points, seed, step).to(points.device)]
    if _drwr_is_in_use(config):
        loss = drwr_loss(
            points,
            world_to_camera,
            masks,
            smooth,
            focal_length=focal_length,
            grid=config.grid,
            config=config,
            semantics=config.semantics,
            method=config.method,
            view_mask=view_mask,
        )
        total, terms = total + loss.total, {"unary": loss.unary, "repulsion": loss.repulsion}
    active = [name for name in active_terms(config) if name in OTHER_TERMS]
    if active:
        numbers = None
        if "chamfer_2d" in active:
            numbers = uniform_numbers(keys, masks.shape[1], config.chamfer_2d_draws, seed, step).to(points.device)
        per_view = _other_terms(points, world_to_camera, masks, focal_length, config, scale, numbers)
        for name in active:
            terms[name] = mean_over_views(per_view[name].view(masks.shape[:2]), view_mask)
            total = total + getattr(config, OTHER_TERMS[name]) * terms[name]
    return TrainingLoss(total, terms)


def active_terms(config: LossConfig) -> list[str]:
    """Return the names of the terms that `training_loss` reports under this configuration."""
    drwr = ["unary", "repulsion"] if _drwr_is_in_use(config) else []
    return drwr + [name for name, key in OTHER_TERMS.items() if getattr(config, key) > 0]


def _drwr_is_in_use(config: LossConfig) -> bool:
    covers = config.semantics == "default" and config.coverage_weight > 0
    return config.unary_weight > 0 or config.repulsion_weight > 0 or covers


def _other_terms(
    points: Tensor,
    world_to_camera: Tensor,
    masks: Tensor,
    focal_length: float | Tensor,
    config: LossConfig,
    scale: Tensor | None,
    numbers: Tensor | None,  # [B, V, S, 3]
) -> dict[str, Tensor]:
    """Return each of the other terms in use per view [L], L = B · V."""
    xy, depth = project(points[:, None], world_to_camera, focal_length)
    depth = (depth - world_to_camera[..., 2, 3, None].to(depth)).flatten(0, 1)
    views, grid = masks.shape[1], config.grid
    xy, masks = xy.flatten(0, 1), masks.to(points.dtype).flatten(0, 1)
    terms = {}
    if config.volumetric_weight > 0:
        factor = None if scale is None else scale.to(points.dtype).repeat_interleave(views)
        blur = (config.volumetric_sigma, config.volumetric_kernel)
        terms["volumetric"] = volumetric(xy, depth, masks, factor, grid, *blur, config.semantics)
    valid = xy.isfinite().all(-1)
    xy = torch.where(valid[..., None], xy, torch.full_like(xy, 0.5))
    coordinates, weights = _pixels(xy, masks, grid, config.semantics)
    if config.sum_weight > 0 or config.entropy_weight > 0:
        weights = torch.where(valid, weights, torch.zeros_like(weights))
        terms["sum"], terms["entropy"] = spread(coordinates, weights, valid, grid)
    if numbers is not None:
        targets = _targets(masks, numbers.flatten(0, 1), grid, config.semantics)
        distance = chamfer_2d(coordinates, valid, targets)
        terms["chamfer_2d"] = torch.where(masks.flatten(1).any(-1), distance, torch.zeros_like(distance))
    return terms


def _pixels(xy: Tensor, masks: Tensor, grid: int, semantics: str) -> tuple[Tensor, Tensor]:
    """Return pixel coordinates [L, N, 2] and the masks [L, N] there."""
    if semantics == "released":
        coordinates = sampling.released_coordinates(xy, grid)
        image = sampling.released_image(masks, grid)
        return coordinates, sampling.released_samples(image, coordinates, 1)[..., 0]
    coordinates = sampling.pixel_coordinates(xy, grid)
    return coordinates, sampling.bilinear_in_zeros(sampling.area_average(masks, grid), coordinates)


def _targets(masks: Tensor, numbers: Tensor, grid: int, semantics: str) -> Tensor:
    """Return points [L, S, 2] drawn in the silhouettes, in the pixel coordinates of the projections."""
    if semantics == "released":
        return silhouette_draws(sampling.released_image(masks, grid), numbers, jitter=False)
    xy = (silhouette_draws(masks, numbers, jitter=True) + 0.5) / masks.shape[-1]
    return sampling.pixel_coordinates(xy, grid)
