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
from drwr_dist.losses.crowding import crowding
from drwr_dist.losses.draws import kept_points, uniform_numbers
from drwr_dist.losses.objective import nan_where_broken, seen_points, terms_per_view
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


class Views(NamedTuple):
    """What judges the points of a batch: V views of each of B objects."""

    world_to_camera: Tensor  # [B, V, 4, 4]
    masks: Tensor  # [B, V, H, H] in [0, 1]
    smooth: Tensor | None = None  # [B, V, H, H], smooth silhouettes; None computes them
    focal_length: float | Tensor = FOCAL_LENGTH  # widths of the frame, a number or [B, V]
    present: Tensor | None = None  # [B, V], True where there is a view; None: everywhere
    copies: int = 1  # so many neighbouring views are the same one, under cameras to choose from


def training_loss(
    points: Tensor,  # [B, N, 3]
    views: Views,
    config: LossConfig,
    *,
    scale: Tensor | None = None,  # [B]
    keys: Sequence[str] = (),
    seed: int = 0,
    step: int = 0,
) -> TrainingLoss:
    """Evaluate the objective that `config` describes; `drwr_loss` has the conventions.

    Args:
        points: [B, N, 3], object frame.
        views: cameras and silhouettes.
        config: weights and constants of this step (schedules are the caller's).
        scale: [B], factor of the occupancies in the volumetric term; None: 1.
        keys: [B], what the objects are called: with seed and step they decide what is drawn in the silhouettes.
        seed: of the run.
        step: from 0.

    Raises:
        ValueError: a shape does not fit.
    """
    per_view = weighted_terms(points, views, config, scale=scale, keys=keys, seed=seed, step=step)
    terms = {name: mean_over_views(term, views.present) for name, term in per_view.items()}
    return TrainingLoss(combine(terms, config), terms)


def combine(terms: dict[str, Tensor], config: LossConfig) -> Tensor:
    """Return the sum of terms times their weights."""
    weighted = [getattr(config, weight_key(name)) * term for name, term in terms.items()]
    return torch.stack(weighted).sum(0)


def weight_key(name: str) -> str:
    """Return the key of a term's weight."""
    return OTHER_TERMS.get(name, f"{name}_weight")


def active_terms(config: LossConfig) -> list[str]:
    """Return the names of the terms that are evaluated and reported under this configuration."""
    ours = config.semantics == "default"
    covers = ["coverage"] if ours and config.coverage_weight > 0 else []
    drwr = ["unary", "repulsion", *covers]
    in_use = drwr if covers or config.unary_weight > 0 or config.repulsion_weight > 0 else []
    in_space = ["crowding"] if ours and config.crowding_weight > 0 else []
    return in_use + in_space + [name for name, key in OTHER_TERMS.items() if getattr(config, key) > 0]


def weighted_terms(
    points: Tensor,
    views: Views,
    config: LossConfig,
    *,
    scale: Tensor | None = None,
    keys: Sequence[str] = (),
    seed: int = 0,
    step: int = 0,
) -> dict[str, Tensor]:
    """Return each term in use, unweighted, per view [B, V]. Arguments as `training_loss`."""
    broken = nan_where_broken(points, views.world_to_camera, views.focal_length)
    if config.keep_points < 1:
        points = points[:, kept_points(points.shape[1], config.keep_points, seed, step).to(points.device)]
    names = active_terms(config)
    terms: dict[str, Tensor] = {}
    if "unary" in names:
        shared = (views.world_to_camera, views.masks, views.smooth, views.focal_length)
        found = terms_per_view(points, *shared, config.grid, config, config.semantics, config.method)
        terms |= zip(("unary", "repulsion", "coverage"), found, strict=True)
    if "crowding" in names:  # has no view: the same for all
        seen = seen_points(points, views.world_to_camera, views.focal_length, views.present)
        terms["crowding"] = crowding(points, seen, config.crowding_radius)[:, None].expand(views.masks.shape[:2])
    if any(name in OTHER_TERMS for name in names):
        numbers = None
        if "chamfer_2d" in names:
            places = views.masks.shape[1] // views.copies
            drawn = uniform_numbers(keys, places, config.chamfer_2d_draws, seed, step)
            numbers = drawn.repeat_interleave(views.copies, 1).to(points.device)
        terms |= _other_terms(points, views, config, scale, numbers)
    return {name: terms[name] + broken for name in names}


def _other_terms(
    points: Tensor,
    views: Views,
    config: LossConfig,
    scale: Tensor | None,
    numbers: Tensor | None,  # [B, V, S, 3]
) -> dict[str, Tensor]:
    """Return each of the other terms in use per view [B, V]."""
    shape, grid = views.masks.shape[:2], config.grid
    xy, depth = project(points[:, None], views.world_to_camera, views.focal_length)
    depth = (depth - views.world_to_camera[..., 2, 3, None].to(depth)).flatten(0, 1)
    xy, masks = xy.flatten(0, 1), views.masks.to(points.dtype).flatten(0, 1)
    terms = {}
    if config.volumetric_weight > 0:
        factor = None if scale is None else scale.to(points.dtype).repeat_interleave(shape[1])
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
    return {name: term.view(shape) for name, term in terms.items()}


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
