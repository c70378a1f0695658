"""Silhouettes and cameras that are wrong, each in one way: what benchmarks/studies.py trains on.

Every error is a function of the object and the view, the same in all epochs: noise in the data, not augmentation.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from drwr_dist.data.batch import Batch
from drwr_dist.data.specks import without_specks
from drwr_dist.silhouette import smooth_silhouette

Mask = NDArray[np.uint8]  # [H, W], 0 or 1
MaskNoise = Callable[[Mask, np.random.Generator], Mask]


def dilated(mask: Mask, random: np.random.Generator) -> Mask:
    """Two pixels too large on all sides."""
    return np.asarray(cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))))


def eroded(mask: Mask, random: np.random.Generator) -> Mask:
    """Two pixels too small; what is thinner than five pixels is gone."""
    return np.asarray(cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))))


def holed(mask: Mask, random: np.random.Generator) -> Mask:
    """Four round holes inside, of a twentieth of the image's width in radius."""
    rows, columns = np.nonzero(mask)
    for place in random.integers(len(rows), size=4):
        cv2.circle(mask, (int(columns[place]), int(rows[place])), len(mask) // 20, 0, thickness=-1)
    return mask


def flipped(mask: Mask, random: np.random.Generator) -> Mask:
    """Five pixels in a hundred are the opposite."""
    return np.where(random.random(mask.shape) < 0.05, 1 - mask, mask).astype(np.uint8)


def occluded(mask: Mask, random: np.random.Generator) -> Mask:
    """Hide a quarter of the silhouette, beyond a straight line of any direction."""
    rows, columns = np.nonzero(mask)
    angle = random.uniform(0, 2 * np.pi)
    along = np.cos(angle) * columns + np.sin(angle) * rows
    hidden = along > np.quantile(along, 0.75)
    mask[rows[hidden], columns[hidden]] = 0
    return mask


MASKS: dict[str, MaskNoise] = {
    "dilated": dilated,
    "eroded": eroded,
    "holes": holed,
    "flipped": flipped,
    "occluded": occluded,
}


def disturb(batch: Batch, masks: str = "", degrees: float = 0.0, despeckle: int = 0) -> Batch:
    """Return a batch with wrong silhouettes, or cameras that are off by so many degrees around the object.

    Args:
        batch: from the stream.
        masks: a key of MASKS; "": right ones.
        degrees: angle of a rotation of the object about an axis of any direction.
        despeckle: the key data.despeckle, for masks that are wrong after decoding.
    """
    found, cameras = batch.masks.clone(), batch.world_to_camera.clone()
    for row, key in enumerate(batch.keys):
        for view in range(found.shape[1]):
            seed = zlib.crc32(batch.world_to_camera[row, view].numpy().tobytes(), zlib.crc32(key.encode()))
            random = np.random.default_rng(seed)
            if masks:
                changed = MASKS[masks]((found[row, view].numpy() > 0.5).astype(np.uint8), random)
                if despeckle:
                    changed = without_specks(255 * changed, despeckle) // 255
                if changed.any():  # of a silhouette that is thin all over nothing would be left
                    found[row, view] = torch.from_numpy(changed).to(found)
            if degrees:
                axis = random.normal(size=3)
                turned = np.eye(4)
                turned[:3, :3] = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis)).as_matrix()
                cameras[row, view] = cameras[row, view] @ torch.from_numpy(turned)
    smooth = smooth_silhouette(found) if masks else batch.smooth
    return dataclasses.replace(batch, masks=found, smooth=smooth, world_to_camera=cameras)
