"""The same network taught by the ground truth: a reference of what any loss on silhouettes could hope for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from training import Judge

from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.stream import SampleTable
from drwr_dist.metrics import chamfer_distance
from drwr_dist.model import Prediction

MIRRORED = torch.tensor([1.0, 1.0, -1.0])  # across z = 0, as data.mirror does


def three_dimensional(samples: SampleTable, config: TrainConfig) -> Judge:
    """Return a loss: Chamfer distance to the ground truth of the objects of a batch, mirrored where they are."""
    clouds = [cloud_of(samples, number) for number in range(len(samples.keys))]
    plan = samples.plan(config.seed, config.global_batch)

    def judge(prediction: Prediction, batch: Batch, step: int) -> Tensor:
        epoch = plan.epoch_of(step)
        distances = []
        for points, key in zip(prediction.points, batch.keys, strict=True):
            number = samples.keys.index(key)
            mirror = config.data.mirror and plan.mirrored(number, epoch)
            distances += chamfer_distance(points, clouds[number] * MIRRORED if mirror else clouds[number])
        return 2 * torch.stack(distances).mean()

    return judge


def cloud_of(samples: SampleTable, number: int) -> Tensor:
    """Return the ground truth of an object, [M, 3]."""
    points = samples.read(number, views=[0], with_points=True).points
    assert points is not None, f"{samples.keys[number]} has no ground truth"
    return torch.from_numpy(points.astype(np.float32))
