"""Pictures and clouds of a few objects for TensorBoard, drawn by rank 0 while training goes on.

Nothing here draws a random number or touches a gradient, so the loss curve is the same with and without it. The
objects come from the val split, where the dataset has one: ground truth of training objects stays unread.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from drwr_dist import pictures
from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import as_tensor
from drwr_dist.data.index import DatasetIndex
from drwr_dist.data.sample import ObjectSample, composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.engine.validation import SPLIT
from drwr_dist.errors import DataError
from drwr_dist.monitor import Monitor
from drwr_dist.scores import Predictor

OBJECTS = 3
VIEWS = 4  # of each object, at most; the first one is the input
TRUTH_POINTS = 2000  # of a ground truth


class Pictures:
    """The objects that are shown, read once: when they are first drawn."""

    def __init__(self, index: DatasetIndex, config: TrainConfig):
        self.index, self.config = index, config
        self._samples: list[ObjectSample] | None = None

    def is_due(self, done: int) -> bool:
        """Say whether pictures are to be drawn after so many steps."""
        every = self.config.monitor.pictures_every
        return every > 0 and (done in (1, self.config.steps) or done % every == 0)

    def _read(self) -> list[ObjectSample]:
        data = self.config.data
        held_out = bool(self.index.select(SPLIT, data.categories))
        table = SampleTable.select(self.index, SPLIT if held_out else data.split, data.categories)
        samples, step = [], max(1, len(table.keys) // OBJECTS)
        for number in range(0, len(table.keys), step)[:OBJECTS]:
            try:
                samples.append(table.read(number, views=None, with_points=held_out))
            except DataError:
                continue  # a damaged sample is training's and validation's to tell
        return samples

    def draw(self, step: int, predict: Predictor, monitor: Monitor) -> None:
        """Predict the objects, and show them after `step` steps.

        Args:
            step: steps done.
            predict: the network as it is.
            monitor: where to.
        """
        if self._samples is None:
            self._samples = self._read()
        # Where the network chose its frame, clouds are shown as they are, and no camera of the dataset fits them.
        with_cameras = self.config.pose.mode == "known"
        rows: dict[str, list[list[NDArray[np.uint8]]]] = {
            "input": [],
            "projections": [],
            "smooth_silhouettes": [],
            "coverage": [],
        }
        for number, sample in enumerate(self._samples):
            image = composite(sample.images[:1], sample.masks[:1], self.config.data.background)
            points = predict(torch.stack([as_tensor(image[0])]), sample.key.split("/")[0])[0]
            monitor.cloud(f"clouds/{number}/prediction", points, step)
            if sample.points is not None:
                thinned = sample.points[:: max(1, len(sample.points) // TRUTH_POINTS)]
                monitor.cloud(f"clouds/{number}/ground_truth", torch.from_numpy(thinned), step)
            rows["input"].append(list(image))
            masks = sample.masks[:VIEWS]
            rows["smooth_silhouettes"].append([pictures.smooth_picture(mask) for mask in masks])
            if with_cameras:
                views = slice(0, VIEWS)
                xy = pictures.projections(points, sample.world_to_camera[views], sample.focal_length[views])
                drawn = list(zip(masks, xy, strict=True))
                rows["projections"].append([pictures.points_over_silhouette(*each) for each in drawn])
                rows["coverage"].append([pictures.coverage_picture(*each) for each in drawn])
        for name, row in rows.items():
            if row:
                monitor.picture(f"pictures/{name}", pictures.sheet(row), step)
