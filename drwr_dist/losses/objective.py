"""The objective: points, cameras and silhouettes in, one number per term out."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from drwr_dist.camera import FOCAL_LENGTH, project
from drwr_dist.config import LossConfig
from drwr_dist.losses import sampling
from drwr_dist.losses.coverage import coverage
from drwr_dist.losses.crowding import crowding
from drwr_dist.losses.repulsion import repulsion
from drwr_dist.losses.unary import unary_in_frame, unary_of_samples
from drwr_dist.losses.views import mean_over_views
from drwr_dist.silhouette import smooth_silhouette

SEMANTICS = ("default", "released")


class DrwrLoss(NamedTuple):
    """The loss, a scalar each. Ours has coverage and crowding in the total as well, without fields of their own."""

    total: Tensor  # unary_weight · unary + repulsion_weight · repulsion (+ coverage and crowding times their weights)
    unary: Tensor  # unweighted
    repulsion: Tensor  # unweighted


class ViewTerms(NamedTuple):
    """What one semantics makes of the projections: all that unary and repulsion need."""

    unary: Tensor  # [L, N]
    coordinates: Tensor  # [L, N, 2] pixels, for the distances between points
    weights: Tensor  # [L, N]
    bias: Tensor | None  # [L, N], in the exponent of the repulsion; None: 0
    share: Tensor  # [L], factor of the repulsion
    span: float  # pixels, bound of the coordinate differences


def drwr_loss(
    points: Tensor,  # [B, N, 3]
    world_to_camera: Tensor,  # [B, V, 4, 4]
    masks: Tensor,  # [B, V, H, H]
    smooth: Tensor | None = None,  # [B, V, H, H]
    *,
    focal_length: float | Tensor = FOCAL_LENGTH,
    grid: int = 32,
    config: LossConfig | None = None,
    semantics: str = "default",
    method: str = "auto",
    view_mask: Tensor | None = None,  # [B, V]
) -> DrwrLoss:
    """Judge points by their projections into silhouettes: Han et al., ICML 2020, nothing is rendered.

    unary = mean over views and points of |1 - smooth silhouette at the point|.

    "released" gives the numbers of the released TensorFlow code (strided subsampling, frame to [0, grid - 1],
    points out of the frame stuck at its border):
    repulsion = mean over views of 1/n² Σ_ij w_i w_j exp(-|c_i - c_j|² / h + bias + ring_mean_i), with w the mask
    at the point, h = theta · grid / 32 pixels², i = j included.

    "default" is ours: half-pixel centres, masks averaged to the grid, zero weight outside the frame, a unary that
    draws points back into it, and two changes that docs/default_loss.md measures. The repulsion is
    area / (π h) · 1/n² Σ_ij w_i w_j exp(-|c_i - c_j|² / h): 1 for points spread evenly over the silhouette, whatever
    its shape, the grid and n, so that one weight serves all. And the total has a coverage term, the mean distance
    (widths of the frame) from places spread over the silhouette to their nearest projections
    (`drwr_dist.losses.coverage`), and a crowding term, which keeps neighbours in space apart
    (`drwr_dist.losses.crowding`).

    Points with depth ≤ 0.01 are left out of all terms of that view (n counts the others), without a gradient;
    `count_left_out` counts them. A view that has no point left contributes 0. A coordinate, a camera or a focal
    length that is not finite makes all three results NaN: what is broken must not look as if it had nothing to pay.

    Args:
        points: [B, N, 3], object frame. Half precision is raised to float32.
        world_to_camera: [B, V, 4, 4], OpenCV convention.
        masks: [B, V, H, H] in [0, 1], used as they are: binarising is the data layer's job.
        smooth: [B, V, H, H], `smooth_silhouette(masks)`; None computes it, on the CPU.
        focal_length: widths of the frame, a number or [B, V].
        grid: pixels, the side of the sampling grid; divides H.
        config: weights and constants; None takes those that belong to `semantics`. Its own fields
            `semantics`, `grid` and `method` are not read: the arguments of this function decide.
        semantics: default | released.
        method: auto | plain | fourier | gridded, how the repulsion is summed; the numbers agree.
        view_mask: [B, V], True where there is a view; None: everywhere. What stands in the other places counts for
            nothing; each object counts alike, however many views it has.

    Returns:
        Three scalars of the points' dtype: total, unary and repulsion (these two unweighted).

    Raises:
        ValueError: a shape does not fit, grid does not divide H, or a name is unknown.

    Examples:
        >>> from drwr_dist.camera import world_to_camera_from_position
        >>> camera = world_to_camera_from_position(torch.tensor([[[0.0, -1.0, 0.0]]]))  # one object, one view
        >>> centres = torch.arange(64) - 31.5
        >>> disc = (centres[:, None] ** 2 + centres**2 < 20**2).float()[None, None]
        >>> near, far = torch.tensor([[[0.0, 0, 0], [0.1, 0, 0]]]), torch.tensor([[[-0.2, 0, 0], [0.2, 0, 0]]])
        >>> near_loss, far_loss = drwr_loss(near, camera, disc), drwr_loss(far, camera, disc)
        >>> float(near_loss.unary), float(far_loss.unary)  # all are inside
        (0.0, 0.0)
        >>> bool(near_loss.repulsion > far_loss.repulsion)  # points that lie close pay
        True
    """
    _check(points, world_to_camera, masks, smooth, grid, semantics)
    if config is None:
        config = LossConfig.released() if semantics == "released" else LossConfig()
    if points.dtype in (torch.float16, torch.bfloat16):
        points = points.float()
    terms = terms_per_view(points, world_to_camera, masks, smooth, focal_length, grid, config, semantics, method)
    unary, pairwise, covered = (mean_over_views(term, view_mask) for term in terms)
    total = config.unary_weight * unary + config.repulsion_weight * pairwise
    if semantics == "default":
        total = total + config.coverage_weight * covered
        if config.crowding_weight > 0:
            seen = seen_points(points, world_to_camera, focal_length, view_mask)
            total = total + config.crowding_weight * crowding(points, seen, config.crowding_radius).mean()
    return DrwrLoss(total, unary, pairwise)


def terms_per_view(
    points: Tensor,
    world_to_camera: Tensor,
    masks: Tensor,
    smooth: Tensor | None,
    focal_length: float | Tensor,
    grid: int,
    config: LossConfig,
    semantics: str,
    method: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return unary, repulsion and coverage of each view [B, V], unweighted. Arguments as `drwr_loss`, unchecked."""
    if smooth is None:
        smooth = smooth_silhouette(masks.to(points.dtype))
    shape = masks.shape[:2]
    masks, smooth = masks.to(points.dtype).flatten(0, 1), smooth.to(points.dtype).flatten(0, 1)
    xy, _ = project(points[:, None], world_to_camera, focal_length)
    unary, pairwise, covered = _per_view(xy.flatten(0, 1), masks, smooth, grid, config, semantics, method)
    broken = nan_where_broken(points, world_to_camera, focal_length)
    return unary.view(shape) + broken, pairwise.view(shape) + broken, covered.view(shape) + broken


def nan_where_broken(points: Tensor, world_to_camera: Tensor, focal_length: float | Tensor) -> Tensor:
    """Return 0 for each view [B, V], NaN where its camera or any of the points is not finite: to add to its terms."""
    focal = torch.as_tensor(focal_length, device=points.device)
    sound = world_to_camera[..., :3, :].isfinite().flatten(-2).all(-1) & focal.isfinite() & points.isfinite().all()
    return torch.where(sound, 0.0, torch.nan).to(points.dtype)


def count_left_out(points: Tensor, world_to_camera: Tensor, focal_length: float | Tensor = FOCAL_LENGTH) -> Tensor:
    """Count the points that each view leaves out, because they are not in front of its camera.

    Args:
        points: [B, N, 3], object frame.
        world_to_camera: [B, V, 4, 4], OpenCV convention.
        focal_length: widths of the frame, a number or [B, V].

    Returns:
        [B, V], integers.

    Examples:
        >>> count_left_out(torch.tensor([[[0.0, 0.0, -3.0]]]), torch.eye(4)[None, None])  # behind the camera
        tensor([[1]])
    """
    with torch.no_grad():
        xy, _ = project(points[:, None], world_to_camera, focal_length)
        return (~xy.isfinite().all(-1)).sum(-1)


def seen_points(
    points: Tensor, world_to_camera: Tensor, focal_length: float | Tensor, view_mask: Tensor | None
) -> Tensor:
    """Return which points [B, N] lie before the camera of a view at least. Arguments as `drwr_loss`."""
    with torch.no_grad():
        xy, _ = project(points[:, None], world_to_camera, focal_length)
        valid = xy.isfinite().all(-1)
        return (valid if view_mask is None else valid & view_mask.bool()[..., None]).any(1)


def _per_view(
    xy: Tensor, masks: Tensor, smooth: Tensor, grid: int, config: LossConfig, semantics: str, method: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return unary, repulsion and coverage of each view [L], from projections [L, N, 2] and silhouettes [L, H, H]."""
    valid = xy.isfinite().all(-1)
    xy = torch.where(valid[..., None], xy, torch.full_like(xy, 0.5))
    terms = _TERMS[semantics](xy, masks, smooth, grid, config)
    n = valid.sum(-1).clamp(min=1)
    unary = torch.where(valid, terms.unary, torch.zeros_like(terms.unary)).sum(-1) / n

    weights = torch.where(valid, terms.weights, torch.zeros_like(terms.weights))
    pairs = repulsion(terms.coordinates, weights, terms.bias, _bandwidth(config, grid), terms.span, method)
    covered = torch.zeros_like(unary)
    if semantics == "default" and config.coverage_weight > 0:
        covered = coverage(xy, valid, masks, config.coverage_places, config.coverage_neighbours)
    return unary, terms.share * pairs / n**2, covered


def refined(grid: int, side: int, refinement: int) -> int:
    """Return the finest multiple of `grid`, at most `refinement` times it, that divides the images' side."""
    return next(grid * factor for factor in range(refinement, 0, -1) if side % (grid * factor) == 0)


def _bandwidth(config: LossConfig, grid: int) -> float:
    """Return h, pixels²."""
    return config.theta * grid / 32


def _default_terms(xy: Tensor, masks: Tensor, smooth: Tensor, grid: int, config: LossConfig) -> ViewTerms:
    """Read the silhouettes with half-pixel centres, averaged to the grid, zero outside."""
    image = sampling.area_average(masks, grid)
    fine = refined(grid, masks.shape[-1], config.unary_refinement)
    coordinates = sampling.pixel_coordinates(xy, grid)
    weights = sampling.bilinear_in_zeros(image, coordinates)
    return ViewTerms(
        unary=unary_in_frame(sampling.area_average(smooth, fine), sampling.pixel_coordinates(xy, fine)),
        # Weights end at -1 and at grid. Beyond, points take no part, and the linear forms want a bounded span.
        coordinates=coordinates.clamp(-1, grid),
        weights=weights,
        bias=None,
        # Of evenly spread points, each has a share π h / area of the others within reach.
        share=image.sum((-2, -1)) / (math.pi * _bandwidth(config, grid)),
        span=grid + 1,
    )


def _released_terms(xy: Tensor, masks: Tensor, smooth: Tensor, grid: int, config: LossConfig) -> ViewTerms:
    """Read the silhouettes as the released code does, with its borders and its mapping."""
    coordinates = sampling.released_coordinates(xy, grid)
    smooth_image = sampling.released_image(smooth, grid)
    samples = sampling.released_samples(sampling.released_image(masks, grid), coordinates, config.ring)
    return ViewTerms(
        unary=unary_of_samples(sampling.released_samples(smooth_image, coordinates, 1)[..., 0]),
        coordinates=coordinates,
        weights=samples[..., 0],
        bias=config.bias + samples.mean(-1),
        share=torch.ones_like(xy[:, 0, 0]),
        span=grid - 1,
    )


_TERMS = {"default": _default_terms, "released": _released_terms}


def _check(
    points: Tensor,
    world_to_camera: Tensor,
    masks: Tensor,
    smooth: Tensor | None,
    grid: int,
    semantics: str,
) -> None:
    """Raise ValueError that says which shape arrived."""
    if semantics not in SEMANTICS:
        raise ValueError(f"semantics must be one of {', '.join(SEMANTICS)}, got {semantics!r}")
    if points.ndim != 3 or points.shape[-1] != 3 or points.shape[1] == 0:
        raise ValueError(f"points must be [B, N, 3] with N ≥ 1, got {list(points.shape)}")
    if not points.is_floating_point():
        raise ValueError(f"points must be floating, got {points.dtype}")
    if masks.ndim != 4 or masks.shape[-1] != masks.shape[-2]:
        raise ValueError(f"masks must be [B, V, H, H], got {list(masks.shape)}")
    if not masks.is_floating_point() and masks.dtype != torch.bool:
        raise ValueError(f"masks must be floating in [0, 1] or bool, got {masks.dtype}")
    batch, views, height = masks.shape[:3]
    if points.shape[0] != batch:
        raise ValueError(f"points {list(points.shape)} and masks {list(masks.shape)} differ in B")
    if tuple(world_to_camera.shape) != (batch, views, 4, 4):
        expected = [batch, views, 4, 4]
        raise ValueError(f"world_to_camera must be {expected}, got {list(world_to_camera.shape)}")
    if smooth is not None and smooth.shape != masks.shape:
        raise ValueError(f"smooth must be {list(masks.shape)}, as masks are; got {list(smooth.shape)}")
    if grid < 2 or height % grid:
        raise ValueError(f"grid must divide the masks' height {height} and be at least 2, got {grid}")
