"""The loss of a batch, whatever the cameras are; and whose fault it is when it is not finite."""

from __future__ import annotations

import torch

from drwr_dist.config import LossConfig, PoseConfig
from drwr_dist.data.batch import Batch
from drwr_dist.losses.hindsight import hindsight_loss
from drwr_dist.losses.pose_search import Gather, alone, search_loss
from drwr_dist.losses.random_cameras import random_cameras
from drwr_dist.losses.training import TrainingLoss, Views, training_loss
from drwr_dist.model import Prediction


def objective(
    prediction: Prediction,
    batch: Batch,
    config: LossConfig,
    pose: PoseConfig,
    seed: int = 0,
    step: int = 0,
    progress: float = 1.0,
    gather: Gather = alone,
) -> TrainingLoss:
    """Evaluate the loss of a batch: predictions against its silhouettes, under the cameras that `pose` says.

    `progress` is the share of the steps that are done; `gather` puts the rows of all ranks together.
    """
    views = Views(batch.world_to_camera, batch.masks, batch.smooth, batch.focal_length, batch.view_mask)
    if prediction.beliefs is not None:
        return search_loss(
            prediction.points, prediction.beliefs, views, config, pose, progress,
            scale=prediction.scale, keys=batch.keys, seed=seed, step=step, gather=gather,
        )  # fmt: skip
    if pose.mode == "predict":
        assert prediction.candidates is not None and prediction.student is not None
        proposed = (prediction.candidates, prediction.student)
        return hindsight_loss(
            prediction.points, *proposed, views, config, pose.student_weight,
            scale=prediction.scale, keys=batch.keys, seed=seed, step=step,
        )  # fmt: skip
    if pose.mode == "random":
        cameras = random_cameras(pose, batch.keys, batch.masks.shape[1], seed, step).to(batch.masks)
        views = views._replace(world_to_camera=cameras)
    return training_loss(
        prediction.points, views, config, scale=prediction.scale, keys=batch.keys, seed=seed, step=step
    )


@torch.no_grad()
def not_finite_keys(prediction: Prediction, batch: Batch, config: LossConfig, pose: PoseConfig) -> list[str]:
    """Return the keys of the samples whose own loss is not finite (all keys, where it is only their sum)."""
    suspects = []
    for row, key in enumerate(batch.keys):
        part = slice(row, row + 1)
        own, alone = prediction.select(part), batch.select(part)
        if not torch.isfinite(objective(own, alone, config, pose).total):
            suspects.append(key)
    return suspects or list(batch.keys)
