"""How well a run that predicts its cameras knows them: rotations, the frame that it chose, and errors.

Nothing tells the network which way the object frame lies. It chooses a frame of its own, the same for all objects,
and its cameras fit that frame: R_believed p' = R_known p. One rotation A for the whole dataset takes points p' of
its frame to the object frame, p = A p', and every view says what it should be: A = R_knownᵀ R_believed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from drwr_dist.camera import world_to_camera_from_quaternion
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable, as_tensor
from drwr_dist.losses.draws import random_quaternions
from drwr_dist.model import PointNetwork
from drwr_dist.run import TrainedRun

ACCURATE = 30.0  # degrees; DPC counts a camera as right up to this error
ALIGNED_OBJECTS = 50  # of the training split, to find how the predicted frame lies; as DPC
_ROUNDS = 5  # of averaging over the inliers

DEFINITIONS = {
    "rotation_error_median": "median over objects and views of the angle between the believed and the known camera "
    "rotation, after the one rotation between the two frames (degrees)",
    "accuracy_30": "fraction of these angles below 30 degrees",
    "alignment": "rotation from the predicted frame to the object frame, found on the training split; predictions, "
    "and with them all distances, are rotated by it",
}


@torch.no_grad()
def rotations(
    run: TrainedRun, table: SampleTable, device: torch.device, limit: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the known and the believed rotation of the camera of every view: float64 [M, 3, 3] each.

    Under `pose.mode=random`, the baseline, the believed ones are drawn at random.

    Args:
        run: predicts cameras, or has random ones.
        table: the objects.
        device: where the network is.
        limit: so many objects at most, evenly spread over the table.
    """
    assert isinstance(run.model, PointNetwork)
    numbers = range(len(table.keys))
    known, believed = [], []
    for number in numbers[:: max(1, -(-len(numbers) // limit)) if limit else 1]:
        sample = table.read(number)
        if run.config.pose.mode == "random":
            quaternions = random_quaternions([sample.key], len(sample.images), run.config.seed, 0)[0]
        else:
            images = composite(sample.images, sample.masks, run.config.data.background)
            parameter = next(run.model.parameters())
            _, student = run.model.poses(torch.stack([as_tensor(image) for image in images]).to(parameter))
            quaternions = student.double().cpu()
        known.append(torch.from_numpy(sample.world_to_camera[:, :3, :3]))
        believed.append(world_to_camera_from_quaternion(quaternions)[:, :3, :3])
    return torch.cat(known), torch.cat(believed)


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
    # tr(AᵀB) of all pairs is one product; cos θ = (tr - 1) / 2.
    traces = proposals.flatten(1) @ proposals.flatten(1).T
    near = (traces - 1) / 2 > torch.cos(torch.deg2rad(torch.tensor(ACCURATE)))
    centre = proposals[int(near.sum(1).argmax())]
    for _ in range(_ROUNDS):
        inliers = proposals[angles(proposals, centre) < ACCURATE]
        centre = _nearest_rotation(inliers.sum(0))
    return centre


def pose_metrics(known: Tensor, believed: Tensor, alignment: Tensor) -> dict[str, Any]:
    """Measure believed against known camera rotations [M, 3, 3], given the rotation [3, 3] between the frames."""
    errors = angles(known @ alignment, believed)
    return {
        "rotation_error_median": float(errors.median()),
        "accuracy_30": float((errors < ACCURATE).double().mean()),
        "views": len(errors),
        "alignment": alignment.tolist(),
        "definitions": DEFINITIONS,
    }


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the rotation nearest to a matrix [3, 3] in the Frobenius norm."""
    u, _, vh = torch.linalg.svd(matrix)
    turn = torch.diag(matrix.new_tensor((1.0, 1.0, float(torch.linalg.det(u @ vh)))))
    rotation: Tensor = u @ turn @ vh
    return rotation
