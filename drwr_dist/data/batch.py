"""What a training step gets: a batch, whose objects are written into place one after another."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drwr_dist.camera import mirrored_cameras
from drwr_dist.data.decoded import Decoded
from drwr_dist.data.recolour import Recolouring


@dataclass(frozen=True)
class Example:
    """One object as training sees it: an input image and the V silhouettes that judge the points."""

    key: str
    image: Tensor  # float32 [3, H, W] in [0, 1], composited on the background
    masks: Tensor  # float32 [V, H, W] in [0, 1]
    smooth: Tensor  # float32 [V, H, W], smooth silhouettes of the masks
    world_to_camera: Tensor  # float64 [V, 4, 4]
    focal_length: Tensor  # float64 [V], frame widths
    view_images: Tensor | None = None  # float32 [V, 3, H, W], what the judging views show; where they were asked for


@dataclass(frozen=True)
class Failure:
    """A sample that could not be used, and why (shard, key and reason)."""

    key: str
    reason: str
    shard: str = ""


@dataclass
class Batch:
    """A rank's part of a global batch; b may be 0 in the last step of an epoch.

    V is `data.supervision_views`. An object with fewer views repeats its last one, and view_mask is False there.
    """

    keys: list[str]
    images: Tensor  # float32 [b, 3, H, W]
    masks: Tensor  # float32 [b, V, H, W]
    smooth: Tensor  # float32 [b, V, H, W]
    world_to_camera: Tensor  # float64 [b, V, 4, 4]
    focal_length: Tensor  # float64 [b, V]
    view_mask: Tensor  # bool [b, V]
    view_images: Tensor | None = None  # float32 [b, V, 3, H, W], where they were asked for
    failures: list[Failure] = field(default_factory=list)

    def example(self, row: int) -> Example:
        """Return one object without the places of views that it doesn't have."""
        views = int(self.view_mask[row].sum())
        return Example(
            key=self.keys[row],
            image=self.images[row],
            masks=self.masks[row, :views],
            smooth=self.smooth[row, :views],
            world_to_camera=self.world_to_camera[row, :views],
            focal_length=self.focal_length[row, :views],
            view_images=None if self.view_images is None else self.view_images[row, :views],
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """Move all tensors to a device, as floating-point numbers of `dtype`."""
        moved = {
            name: getattr(self, name).to(device=device, dtype=dtype, non_blocking=True)
            for name in ("images", "masks", "smooth", "world_to_camera", "focal_length")
        }
        moved["view_mask"] = self.view_mask.to(device, non_blocking=True)
        if self.view_images is not None:
            moved["view_images"] = self.view_images.to(device=device, dtype=dtype, non_blocking=True)
        return Batch(keys=self.keys, failures=self.failures, **moved)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which a GPU fetches it beside its work: for PyTorch's loader."""
        pinned = {part.name: getattr(self, part.name) for part in fields(self)}
        pinned |= {name: part.pin_memory() for name, part in pinned.items() if isinstance(part, Tensor)}
        return Batch(**pinned)

    def select(self, rows: slice) -> Batch:
        """Return the batch of some of its objects."""
        return Batch(
            keys=self.keys[rows],
            images=self.images[rows],
            masks=self.masks[rows],
            smooth=self.smooth[rows],
            world_to_camera=self.world_to_camera[rows],
            focal_length=self.focal_length[rows],
            view_mask=self.view_mask[rows],
            view_images=None if self.view_images is None else self.view_images[rows],
        )


class BatchRows:
    """Room for a batch, filled object by object."""

    def __init__(self, objects: int, views: int, side: int, view_images: bool) -> None:
        self.keys: list[str] = []
        self.failures: list[Failure] = []
        pixels = np.float32
        self._images: NDArray[np.float32] = np.empty((objects, 3, side, side), pixels)
        self._masks: NDArray[np.float32] = np.empty((objects, views, side, side), pixels)
        self._smooth: NDArray[np.float32] = np.empty((objects, views, side, side), pixels)
        self._cameras: NDArray[np.float64] = np.empty((objects, views, 4, 4))
        self._focal_length: NDArray[np.float64] = np.empty((objects, views))
        self._present: NDArray[np.bool_] = np.zeros((objects, views), np.bool_)
        self._seen: NDArray[np.float32] | None = (
            np.empty((objects, views, 3, side, side), pixels) if view_images else None
        )

    def add(
        self,
        decoded: Decoded,
        input_view: int,
        supervision: list[int],
        mirror: bool,
        recolouring: Recolouring | None = None,
    ) -> None:
        """Write an object into the next row; where this raises, the row stays free."""
        row, views = len(self.keys), len(supervision)
        decoded.write_picture(input_view, self._images[row], recolouring)
        for place, view in enumerate(supervision):
            decoded.write_silhouette(view, self._masks[row, place], self._smooth[row, place])
            if self._seen is not None:
                decoded.write_picture(view, self._seen[row, place], recolouring)
        # The last view stands in for missing ones: a camera and a mask that nothing chokes on.
        for part in (self._masks, self._smooth, self._seen):
            if part is not None and views < part.shape[1]:
                part[row, views:] = part[row, views - 1]
        chosen = supervision + supervision[-1:] * (self._present.shape[1] - views)
        self._cameras[row] = decoded.world_to_camera[chosen]
        self._focal_length[row] = decoded.focal_length[chosen]
        self._present[row, :views] = True
        if mirror:
            self._mirror(row)
        self.keys.append(decoded.key)

    def _mirror(self, row: int) -> None:
        for part in (self._images, self._masks, self._smooth, self._seen):
            if part is not None:
                part[row] = part[row, ..., ::-1].copy()
        self._cameras[row] = mirrored_cameras(torch.from_numpy(self._cameras[row])).numpy()

    def batch(self) -> Batch:
        """Return what was written."""
        rows = len(self.keys)
        return Batch(
            keys=self.keys,
            images=torch.from_numpy(self._images[:rows]),
            masks=torch.from_numpy(self._masks[:rows]),
            smooth=torch.from_numpy(self._smooth[:rows]),
            world_to_camera=torch.from_numpy(self._cameras[:rows]),
            focal_length=torch.from_numpy(self._focal_length[:rows]),
            view_mask=torch.from_numpy(self._present[:rows]),
            view_images=None if self._seen is None else torch.from_numpy(self._seen[:rows]),
            failures=self.failures,
        )


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """Turn a uint8 [H, W, 3] image into the float32 [3, H, W] in [0, 1] that the network takes."""
    return as_float(torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))))


def as_float(pixels: Tensor) -> Tensor:
    """Turn uint8 pixels into float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255.0
