"""An object as the cache keeps it: each view decoded when it is first asked for, and once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.faults import FOREGROUND
from drwr_dist.data.members import MemberReader, view_members
from drwr_dist.data.recolour import Recolouring
from drwr_dist.data.sample import composite_planes
from drwr_dist.data.specks import without_specks
from drwr_dist.silhouette import EDGE, INSIDE, Squares, squares_outside, write_smooth

_LARGEST_UINT16_SIDE = 181  # of an image whose squared distances all fit


def bytes_of_view(side: int) -> int:
    """Return the memory of a decoded view: colours, alpha and squared distances of side × side pixels."""
    return (3 + 1 + (4 if side > _LARGEST_UINT16_SIDE else 2)) * side * side


@dataclass
class Decoded:
    """The views of an object: of each, the PNG files or what they hold, on its background.

    Asking for a view raises DataError, naming shard, key and member, where its files are damaged.
    """

    key: str
    shard: str
    files: dict[str, bytes]  # member -> PNG file that has not been decoded yet
    side: int  # pixels
    world_to_camera: NDArray[np.float64]  # [V, 4, 4]
    focal_length: NDArray[np.float64]  # [V]
    background: float  # grey level in [0, 1]
    binary: bool  # silhouettes are binary, else alpha
    despeckle: int  # pixels; smaller patches and holes are taken out of silhouettes
    pixels: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # view -> [3, H, W]
    alphas: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # view -> [H, W]
    shapes: dict[int, NDArray[np.uint8]] = field(default_factory=dict)  # view -> [H, W], without specks
    squares: dict[int, Squares | None] = field(default_factory=dict)  # view -> [H, W]; None: nothing is inside

    @classmethod
    def of(
        cls,
        members: Mapping[str, bytes],
        *,
        key: str,
        shard: str,
        side: int,
        background: float,
        binary: bool,
        despeckle: int = 0,
    ) -> Decoded:
        """Read the cameras and check that all views are there; their files are decoded later.

        Args:
            members: as `drwr_dist.data.sample.split_members` gives them.
            key: the sample's key, named in errors.
            shard: named in errors.
            side: of the images, in pixels.
            background: grey level in [0, 1] under the images.
            binary: whether silhouettes are binary.
            despeckle: pixels; smaller patches and holes are taken out of silhouettes (`without_specks`).
        """
        read = MemberReader(members, key, shard)
        world_to_camera, focal_length = read.cameras()
        read.check_views(len(focal_length), ())
        files = {name: members[name] for name in view_members(len(focal_length))}
        return cls(key, shard, files, side, world_to_camera, focal_length, background, binary, despeckle)

    @property
    def views(self) -> int:
        """The number of views."""
        return len(self.focal_length)

    @property
    def bytes(self) -> int:
        """The memory that it never exceeds, of each PNG file and its content the larger; to ask before decoding."""
        area = self.side * self.side
        excess = sum(max(0, len(file) - area * (3 if "image" in name else 1)) for name, file in self.files.items())
        return self.views * (bytes_of_view(self.side) + (area if self.despeckle else 0)) + excess

    def write_picture(self, view: int, out: NDArray[np.float32], recolouring: Recolouring | None = None) -> None:
        """Write the image of a view on its background into `out` [3, H, W], in [0, 1], in other colours if asked."""
        if view not in self.pixels:
            alpha, name = self._alpha(view), f"{view:02d}.image.png"
            image = self._read.png(name, 3, self.side)
            self.pixels[view] = composite_planes(image[None], alpha[None], self.background)[0]
            del self.files[name]
        cv2.LUT(self.pixels[view].reshape(-1, self.side), _unit(), out.reshape(-1, self.side))
        if recolouring is not None:
            recolouring.apply(out, self._alpha(view))

    def write_silhouette(self, view: int, mask: NDArray[np.float32], smooth: NDArray[np.float32]) -> None:
        """Write the mask of a view and its smooth silhouette, both [H, W]."""
        squares = self._squares(view)
        if self.binary:
            assert squares is not None  # a mask without a pixel of the object does not get here
            write_smooth(squares, smooth)
            cv2.threshold(smooth, (1 + EDGE) / 2, 1, cv2.THRESH_BINARY, mask)
            return
        alpha = self._shape(view)
        cv2.LUT(alpha, _unit(), mask)
        if squares is not None:
            write_smooth(squares, smooth)
            np.copyto(smooth, mask, where=alpha > 0)
        else:
            np.copyto(smooth, mask)

    @property
    def _read(self) -> MemberReader:
        return MemberReader(self.files, self.key, self.shard)

    def _alpha(self, view: int) -> NDArray[np.uint8]:
        if view not in self.alphas:
            name = f"{view:02d}.mask.png"
            self.alphas[view] = self._read.mask(name, self.side)
            del self.files[name]
        return self.alphas[view]

    def _shape(self, view: int) -> NDArray[np.uint8]:
        """Return the alpha that silhouettes are made of; pictures keep theirs, as whoever predicts has no other."""
        if not self.despeckle:
            return self._alpha(view)
        if view not in self.shapes:
            self.shapes[view] = without_specks(self._alpha(view), self.despeckle)
        return self.shapes[view]

    def _squares(self, view: int) -> Squares | None:
        """Return squared distances to what the silhouette has inside."""
        if view not in self.squares:
            inside = FOREGROUND if self.binary else int(np.ceil(255 * INSIDE))
            outside = cv2.threshold(self._shape(view), inside - 1, 1, cv2.THRESH_BINARY_INV)[1]
            some = self.binary or cv2.countNonZero(outside) < outside.size
            self.squares[view] = squares_outside(outside) if some else None
        return self.squares[view]


@functools.cache
def _unit() -> NDArray[np.float32]:
    """Return the number in [0, 1] of each byte."""
    return np.arange(256, dtype=np.float32) / np.float32(255)
