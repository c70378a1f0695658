"""How well a run that predicts its cameras knows them: rotations, the frame that it chose, and errors.

Nothing tells the network which way the object frame lies. It chooses a frame of its own for each category, the same
for all of its objects, and its cameras fit that frame: R_believed p' = R_known p. One rotation A for each category
takes points p' of that frame to the object frame, p = A p', and every view says what it should be:
A = R_knownᵀ R_believed.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from drwr_dist.data.batch import as_tensor
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.errors import DataError
from drwr_dist.losses.random_cameras import random_cameras
from drwr_dist.model import PointNetwork
from drwr_dist.run import TrainedRun

ACCURATE = 30.0  # degrees; DPC counts a camera as right up to this error
ALIGNED_OBJECTS = 50  # of the training split, to find how the predicted frame lies; as DPC
_ROUNDS = 5  # of averaging over the inliers
_CANDIDATES = 2000  # proposals, at most twice as many, from which the averaging may start
_BLOCK = 256  # candidates compared with all proposals at a time

DEFINITIONS = {
    "rotation_error_median": "median over objects and views of the angle between the believed and the known camera "
    "rotation, after the rotation between the two frames of the object's category (degrees)",
    "accuracy_30": "fraction of these angles below 30 degrees",
    "alignment": "of each category: rotation from the predicted frame to the object frame, found on the training "
    "split; predictions, and with them all distances, are rotated by it",
}


class Rotations(NamedTuple):
    """Of the camera of every view of some objects."""

    known: Tensor  # float64 [M, 3, 3]
    believed: Tensor  # float64 [M, 3, 3]
    categories: list[str]  # M


@torch.no_grad()
def rotations(
    run: TrainedRun, table: SampleTable, device: torch.device, limit: int | None = None, skip: bool = False
) -> Rotations:
    """Return the known and the believed rotation of the camera of every view.

    Under `pose.mode=random`, the baseline, the believed ones are drawn at random.

    Args:
        run: predicts cameras, or has random ones.
        table: the objects.
        device: where the network is.
        limit: so many objects of each category at most, evenly spread over the table.
        skip: leave out damaged objects, instead of failing.

    Raises:
        DataError: a damaged object; with `skip`, if all are.
    """
    assert isinstance(run.model, PointNetwork)
    known, believed, categories = [], [], []
    problem = None
    for number in _spread(table, limit):
        try:
            sample = table.read(number)
        except DataError as error:
            problem = error
            if skip:
                continue
            raise
        if run.config.pose.mode == "random":
            cameras = random_cameras(run.config.pose, [sample.key], len(sample.images), run.config.seed, 0)[0]
        else:
            images = composite(sample.images, sample.masks, run.config.data.background)
            parameter = next(run.model.parameters())
            cameras = run.model.cameras(torch.stack([as_tensor(image) for image in images]).to(parameter))
        known.append(torch.from_numpy(sample.world_to_camera[:, :3, :3]))
        believed.append(cameras[:, :3, :3].double().cpu())
        categories += [_category(sample.key)] * len(cameras)
    if problem and not known:
        raise problem
    return Rotations(torch.cat(known), torch.cat(believed), categories)


def alignments(found: Rotations) -> dict[str, Tensor]:
    """Return the rotation [3, 3] from the predicted frame to the object frame of each category; under "", of all."""
    proposals = found.known.mT @ found.believed
    names = np.array(found.categories)
    return {"": consensus(proposals)} | {
        category: consensus(proposals[torch.from_numpy(names == category)]) for category in sorted(set(names))
    }


def alignment_of(frames: dict[str, Tensor], category: str) -> Tensor:
    """Return the alignment of a category; one that was not trained on has that of all."""
    return frames.get(category, frames[""])


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle in degrees between rotations [..., 3, 3]: [...]."""
    # |a - b|² = 4 (1 - cos θ) = 8 sin²(θ / 2): precise for small angles, where the arc cosine is not.
    half_sine = (a - b).square().sum((-2, -1)).div(8).clamp(0, 1).sqrt()
    return torch.rad2deg(2 * torch.asin(half_sine))


def consensus(proposals: Tensor) -> Tensor:
    """Return the rotation that most of the proposals [M, 3, 3] agree on, within 30 degrees: [3, 3].

    The proposal with most others near it, then the mean of those, a few times over. Outliers, of which a network
    that takes front for back has many, have no influence.
    """
    # tr(AᵀB) of all pairs is one product, and cos θ = (tr - 1) / 2: of some at a time, as pairs are many.
    candidates, least = proposals[:: max(1, len(proposals) // _CANDIDATES)], 1 + 2 * math.cos(math.radians(ACCURATE))
    traces = (block.flatten(1) @ proposals.flatten(1).T for block in torch.split(candidates, _BLOCK))
    centre = candidates[int(torch.cat([(trace > least).sum(1) for trace in traces]).argmax())]
    for _ in range(_ROUNDS):
        inliers = proposals[angles(proposals, centre) < ACCURATE]
        centre = _nearest_rotation(inliers.sum(0))
    return centre


def pose_metrics(found: Rotations, frames: dict[str, Tensor]) -> dict[str, Any]:
    """Measure believed against known camera rotations, given the rotation between the frames of each category."""
    turns = torch.stack([alignment_of(frames, category) for category in found.categories])
    errors = angles(found.known @ turns, found.believed)
    names = np.array(found.categories)
    return _summary(errors) | {
        "categories": {name: _summary(errors[torch.from_numpy(names == name)]) for name in sorted(set(names))},
        "alignment": {name: turn.tolist() for name, turn in frames.items() if name},
        "definitions": DEFINITIONS,
    }


def _summary(errors: Tensor) -> dict[str, Any]:
    return {
        "rotation_error_median": float(np.median(errors.numpy())),
        "accuracy_30": float((errors < ACCURATE).double().mean()),
        "views": len(errors),
    }


def _category(key: str) -> str:
    return key.split("/")[0]


def _spread(table: SampleTable, limit: int | None) -> list[int]:
    """Return the numbers of all objects, or of so many of each category, evenly spread."""
    by_category: dict[str, list[int]] = {}
    for number, key in enumerate(table.keys):
        by_category.setdefault(_category(key), []).append(number)
    chosen = [numbers[:: max(1, -(-len(numbers) // limit)) if limit else 1] for numbers in by_category.values()]
    return sorted(number for numbers in chosen for number in numbers)


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the rotation nearest to a matrix [3, 3] in the Frobenius norm."""
    u, _, vh = torch.linalg.svd(matrix)
    turn = torch.diag(matrix.new_tensor((1.0, 1.0, float(torch.linalg.det(u @ vh)))))
    rotation: Tensor = u @ turn @ vh
    return rotation
