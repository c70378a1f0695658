"""Unknown cameras, searched: every view tries directions all around, and the shape is trained from a likely one.

A network that names its camera and is judged by the shape that it makes at the same time settles early: chairs from
the left and from the right come apart, front and back stay folded onto each other, and no gradient leads out. Trying
all directions costs little here, because nothing is rendered: the predicted points are projected once for each
direction, counted in a coarse grid, and compared with every silhouette of the object.

A camera is then drawn from the posterior: how well its silhouette fits, times what the network believes from the
view's image (which ties the frames of all objects together), balanced at first so that over the batch all azimuths
are used alike (else a few directions that fit first take all views). The draw is nearly free at first and settles to
the best. The network learns the posterior; at prediction time, where there is no silhouette, its belief is the camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from drwr_dist.camera import project
from drwr_dist.config import LossConfig, PoseConfig
from drwr_dist.directions import DirectionGrid, places_in_cells
from drwr_dist.losses.draws import CHOICE, DIRECTION, uniform_per_view
from drwr_dist.losses.sampling import area_average
from drwr_dist.losses.training import TrainingLoss, Views, combine, training_loss
from drwr_dist.losses.views import mean_over_views
from drwr_dist.losses.volumetric import blur_matrix

GRID = 16  # pixels; side of the silhouettes that are compared
_POINTS = 500  # of the predicted ones are enough to tell directions apart
_OPAQUE = 0.004  # this share of all points makes a pixel 63 % opaque: one in 250, about a point for each pixel
_BLUR = 0.5  # pixels
_TRUSTED = 0.3  # of the steps, from which on the network's belief counts in full
SETTLED = 0.6  # of the steps, from which on the softness is the last one
_BALANCING = 10  # rounds

# Puts the rows of all ranks together; returns them and where one's own rows are.
Gather = Callable[[Tensor], tuple[Tensor, slice]]


def alone(rows: Tensor) -> tuple[Tensor, slice]:
    """Return the rows as they are: there is no other rank."""
    return rows, slice(0, len(rows))


def search_loss(
    points: Tensor,  # [B, N, 3]
    beliefs: Tensor,  # [B, V, G]
    views: Views,
    config: LossConfig,
    pose: PoseConfig,
    progress: float,
    *,
    scale: Tensor | None = None,
    keys: Sequence[str] = (),
    seed: int = 0,
    step: int = 0,
    gather: Gather = alone,
) -> TrainingLoss:
    """Return the objective under a camera drawn for each view, plus the distance of the beliefs from the posterior.

    Args:
        points: [B, N, 3], in a frame of the network's own choice.
        beliefs: [B, V, G], logits of the directions, from each view's image alone.
        views: silhouettes; its cameras are not read.
        config: weights and constants of this step.
        pose: the directions, and how freely cameras are drawn.
        progress: share of the run's steps that are done, 0 … 1.
        scale: as `training_loss`.
        keys: as `training_loss`; the draw is a function of (seed, step, key, place of the view).
        seed: of the run.
        step: from 0.
        gather: brings the rows of all ranks together, so that the balance is that of the global batch.

    Returns:
        The total and its terms, with `student`, the cross-entropy, among them. No gradient flows from the shape to
        the beliefs, nor back.
    """
    grid = DirectionGrid.of(pose)
    with torch.no_grad():
        cameras = grid.cameras(places_in_cells(len(grid), DIRECTION, seed, step).to(points))
        costs = silhouette_costs(points, cameras[None], views)
        shares = _posterior(costs, beliefs, views.present, grid.azimuths, pose, progress, gather)
        numbers = uniform_per_view(keys, beliefs.shape[1:2], CHOICE, seed, step).to(shares)
        chosen = (shares.cumsum(-1) < numbers[..., None]).sum(-1).clamp(max=len(grid) - 1)  # [B, V]
        drawn = cameras[chosen]
        if progress >= SETTLED:
            believed = grid.believed_cameras(beliefs).to(drawn)
            nearer = _own_costs(points, believed, views) < costs.gather(-1, chosen[..., None])[..., 0]
            drawn = torch.where(nearer[..., None, None], believed, drawn)
    known = views._replace(world_to_camera=drawn)
    shape = training_loss(points, known, config, scale=scale, keys=keys, seed=seed, step=step)
    entropy = -(shares * beliefs.log_softmax(-1)).sum(-1)
    student = mean_over_views(entropy.to(points.dtype), views.present)
    return TrainingLoss(
        combine(shape.terms, config) + pose.student_weight * student, shape.terms | {"student": student}
    )


def silhouette_costs(points: Tensor, cameras: Tensor, views: Views) -> Tensor:
    """Return the squared distance between each view's silhouette and that of the points from each direction.

    Args:
        points: [B, N, 3].
        cameras: [B or 1, G, 4, 4], `world_to_camera`.
        views: silhouettes [B, V, H, H]; H is a multiple of 16.

    Returns:
        [B, V, G], summed over pixels of a 16 × 16 grid.
    """
    masks = _coarse(views.masks).to(points.dtype)
    focal = views.focal_length
    if isinstance(focal, Tensor) and focal.ndim == 2:
        if bool((focal == focal[:, :1]).all()):
            focal = focal[:, :1]  # one lens for all views of an object: they share their projections
        else:
            each = range(masks.shape[1])
            return torch.cat([_costs(points, cameras, focal[:, v : v + 1], masks[:, v : v + 1]) for v in each], 1)
    return _costs(points, cameras, focal, masks)


def balanced(logits: Tensor, azimuths: int, strength: float = 1.0) -> Tensor:
    """Return probabilities whose rows sum to 1, and in which all azimuths have about the same share of all rows.

    Sinkhorn's iteration, relaxed: an azimuth pays for what it has too much of, in part.

    Args:
        logits: [M, G], cells as in `DirectionGrid`.
        azimuths: cells in a full turn.
        strength: 1: the shares are the same but for the last round; 0: nothing is balanced.

    Returns:
        [M, G].
    """
    if not len(logits):
        return logits
    even = math.log(len(logits) / azimuths)
    cells = logits.view(len(logits), -1, azimuths)
    price = cells.new_zeros(azimuths)
    for _ in range(_BALANCING):
        share = (cells - price).flatten(1).log_softmax(-1).view_as(cells)
        price = strength * (price + torch.logsumexp(share, (0, 1)) - even)
    return (cells - price).flatten(1).softmax(-1)


def _posterior(
    costs: Tensor,  # [B, V, G]
    beliefs: Tensor,  # [B, V, G]
    present: Tensor | None,
    azimuths: int,
    pose: PoseConfig,
    progress: float,
    gather: Gather,
) -> Tensor:
    """Return the share of each direction [B, V, G], float64; views that are not there have even shares."""
    there = present.bool() if present is not None else torch.ones_like(costs[..., 0], dtype=torch.bool)
    # Costs that are not finite must not spoil the balance of all others; the loss itself tells of them.
    rows = torch.cat((costs.nan_to_num(0, 0, 0), beliefs.log_softmax(-1).nan_to_num(0, 0, 0)), -1).double()[there]
    rows, own = gather(rows)
    fit, belief = rows.chunk(2, -1)
    spread = fit.std(-1).mean().clamp(min=torch.finfo(costs.dtype).tiny)
    softness = pose.softness * (pose.softness_end / pose.softness) ** min(1.0, progress / SETTLED)
    logits = min(1.0, progress / _TRUSTED) * belief - fit / (softness * spread)
    shares = balanced(logits, azimuths, max(0.0, 1 - progress / SETTLED))
    result = torch.full(costs.shape, 1 / costs.shape[-1], dtype=torch.float64, device=costs.device)
    result[there] = shares[own]
    return result


def _own_costs(points: Tensor, cameras: Tensor, views: Views) -> Tensor:
    """Return the costs [B, V] of one camera [B, V, 4, 4] for each view."""
    each = range(cameras.shape[1])
    focal = views.focal_length
    parts = []
    for v in each:
        lens = focal[:, v : v + 1] if isinstance(focal, Tensor) and focal.ndim == 2 else focal
        masks = _coarse(views.masks[:, v : v + 1]).to(points.dtype)
        parts.append(_costs(points, cameras[:, v : v + 1], lens, masks)[..., 0])
    return torch.cat(parts, 1)


def _costs(points: Tensor, cameras: Tensor, focal: float | Tensor, masks: Tensor) -> Tensor:
    """Return squared distances [B, V, G] between coarse masks [B, V, P] and the points' silhouettes."""
    silhouettes = _silhouettes(points[:, :_POINTS], cameras, focal)
    squares = masks.square().sum(-1)[..., None] + silhouettes.square().sum(-1)[:, None]
    return squares - 2 * masks @ silhouettes.mT


def _coarse(masks: Tensor) -> Tensor:
    """Return masks [B, V, H, H] as [B, V, P], P = 16²."""
    return area_average(masks.flatten(0, 1), GRID).reshape(*masks.shape[:2], GRID**2)


def _silhouettes(points: Tensor, cameras: Tensor, focal: float | Tensor) -> Tensor:
    """Return how opaque the points [B, N, 3] make each pixel from each camera [B or 1, G, 4, 4]: [B, G, P]."""
    cameras = cameras.expand(len(points), -1, -1, -1)
    if isinstance(focal, Tensor) and focal.ndim > 0:
        focal = focal.reshape(len(points), -1).expand(cameras.shape[:2])
    xy, _ = project(points[:, None], cameras, focal)
    place = torch.where(xy.isfinite(), xy, -xy.new_ones(())) * GRID - 0.5
    place = place.clamp(-2, GRID + 1)  # what is out of the frame is in no pixel
    low = place.floor()
    high_share = place - low
    counts = points.new_zeros(*xy.shape[:2], GRID**2)
    for right in (0, 1):
        for down in (0, 1):
            column, row = (low[..., 0] + right).long(), (low[..., 1] + down).long()
            inside = (column >= 0) & (row >= 0) & (column < GRID) & (row < GRID)
            across = high_share[..., 0] if right else 1 - high_share[..., 0]
            along = high_share[..., 1] if down else 1 - high_share[..., 1]
            pixel = row.clamp(0, GRID - 1) * GRID + column.clamp(0, GRID - 1)
            counts.scatter_add_(-1, pixel, across * along * inside)
    blur = blur_matrix(GRID, _BLUR, 5).to(counts)
    counts = (blur @ counts.view(*xy.shape[:2], GRID, GRID) @ blur).flatten(-2)
    return 1 - torch.exp(-counts / (_OPAQUE * points.shape[1]))
