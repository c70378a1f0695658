"""The network as it is during training, as validation and pictures use it."""

from __future__ import annotations

import torch
from torch import Tensor

from drwr_dist.data.stream import SampleTable
from drwr_dist.model import PointNetwork
from drwr_dist.poses import ALIGNED_OBJECTS, alignment_of, alignments, rotations
from drwr_dist.run import TrainedRun
from drwr_dist.scores import Predictor

AS_IT_IS = {"": torch.eye(3)}


def frames(run: TrainedRun, table: SampleTable, device: torch.device) -> dict[str, Tensor]:
    """Return how the network's frame lies: found on training objects where the network chose it (`pose.mode`)."""
    if run.config.pose.mode == "known":
        return AS_IT_IS
    run.model.eval()
    skip = run.config.data.on_bad_sample == "skip"
    return alignments(rotations(run, table, device, limit=ALIGNED_OBJECTS, skip=skip))


def predictor(model: PointNetwork, device: torch.device, dtype: torch.dtype, aligned: dict[str, Tensor]) -> Predictor:
    """Return the network as a function of images and category; `aligned` rotates its points."""
    model.eval()

    @torch.no_grad()
    def predict(images: Tensor, category: str) -> Tensor:
        points: Tensor = model(images.to(device, dtype))
        return points.float().cpu() @ alignment_of(aligned, category).mT.float()

    return predict
