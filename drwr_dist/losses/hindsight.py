"""Unknown cameras, as in DPC: of several cameras proposed for a view, the best in hindsight is trained.

A single proposal gets stuck: silhouettes of a chair from the front and from behind are alike, and so are their losses
near either. With K proposals for every view, only the one with the least loss gets a gradient, so that each can
settle on its own part of all directions. At prediction time there is no silhouette to choose by; a student learns to
name the winner: 1 - ⟨q, q'⟩², the squared sine of half the angle between their rotations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from drwr_dist.camera import world_to_camera_from_quaternion
from drwr_dist.config import LossConfig
from drwr_dist.losses.training import TrainingLoss, Views, combine, weighted_terms
from drwr_dist.losses.views import mean_over_views


def hindsight_loss(
    points: Tensor,  # [B, N, 3]
    candidates: Tensor,  # [B, V, K, 4]
    student: Tensor,  # [B, V, 4]
    views: Views,
    config: LossConfig,
    student_weight: float,
    *,
    scale: Tensor | None = None,
    keys: Sequence[str] = (),
    seed: int = 0,
    step: int = 0,
) -> TrainingLoss:
    """Return the objective under the best candidate of each view, plus the student's distance from it.

    Args:
        points: [B, N, 3], in a frame of the network's own choice.
        candidates: [B, V, K, 4], quaternions of the proposed cameras.
        student: [B, V, 4], quaternions of the cameras to be believed.
        views: silhouettes; its cameras are not read.
        config: weights and constants of this step.
        student_weight: weight of the term `student`.
        scale: as `training_loss`.
        keys: as `training_loss`.
        seed: as `training_loss`.
        step: as `training_loss`.

    Returns:
        The total and its terms, with `student` among them. Losing candidates have no gradient, and none flows from
        the student to the candidates.
    """
    count = candidates.shape[2]
    proposed = Views(
        world_to_camera=world_to_camera_from_quaternion(candidates).flatten(1, 2),
        masks=views.masks.repeat_interleave(count, 1),
        smooth=None if views.smooth is None else views.smooth.repeat_interleave(count, 1),
        focal_length=_repeat(views.focal_length, count),
        copies=count,
    )
    terms = weighted_terms(points, proposed, config, scale=scale, keys=keys, seed=seed, step=step)
    by_candidate = {name: term.reshape(*student.shape[:2], count) for name, term in terms.items()}
    best = combine(by_candidate, config).detach().argmin(-1, keepdim=True)  # [B, V, 1]
    chosen = {
        name: mean_over_views(term.gather(-1, best)[..., 0], views.present) for name, term in by_candidate.items()
    }
    teacher = candidates.detach().gather(2, best[..., None].expand(-1, -1, -1, 4))[:, :, 0]
    distance = mean_over_views(squared_half_sine(teacher, student), views.present)
    return TrainingLoss(combine(chosen, config) + student_weight * distance, chosen | {"student": distance})


def squared_half_sine(a: Tensor, b: Tensor) -> Tensor:
    """Return sin²(θ/2) [...] of the angle θ between the rotations of quaternions [..., 4] of any length but 0."""
    return 1 - (normalize(a, dim=-1) * normalize(b, dim=-1)).sum(-1).square()


def _repeat(focal_length: float | Tensor, count: int) -> float | Tensor:
    if isinstance(focal_length, Tensor) and focal_length.ndim == 2:
        return torch.repeat_interleave(focal_length, count, 1)
    return focal_length
