"""An object as the cache keeps it: decoded, on its background, with distances to its silhouettes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.sample import ObjectSample, composite_planes
from drwr_dist.silhouette import binarize, squared_distances


@dataclass
class Decoded:
    """What is kept of an object: nothing that an epoch would have to compute again."""

    key: str
    pixels: NDArray[np.uint8]  # [V, 3, H, W], on the background
    masks: NDArray[np.uint8]  # [V, H, W], alpha
    world_to_camera: NDArray[np.float64]  # [V, 4, 4]
    focal_length: NDArray[np.float64]  # [V]
    squares: dict[int, NDArray[np.signedinteger[Any]]] = field(default_factory=dict)  # view -> [H, W]

    @classmethod
    def of(cls, sample: ObjectSample, background: float) -> Decoded:
        """Lay an object over its background."""
        pixels = composite_planes(sample.images, sample.masks, background)
        return cls(sample.key, pixels, sample.masks, sample.world_to_camera, sample.focal_length)

    @property
    def _square_type(self) -> type[np.signedinteger[Any]]:
        side = self.masks.shape[-1]
        return np.int16 if 2 * side * side <= np.iinfo(np.int16).max else np.int32

    @property
    def bytes(self) -> int:
        """How much memory it takes, with the distances of all views."""
        return self.pixels.nbytes + self.masks.nbytes * (1 + np.dtype(self._square_type).itemsize)

    def squared(self, view: int) -> NDArray[np.signedinteger[Any]]:
        """Return squared distances [H, W] to the binary silhouette of a view: 0 inside."""
        if view not in self.squares:
            self.squares[view] = squared_distances(binarize(self.masks[view]) > 0).astype(self._square_type)
        return self.squares[view]
