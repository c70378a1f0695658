"""What lies inside of an object, in shards: `occupancy.npy`, a bit per voxel of the unit cube. Pure.

Only objects with a watertight mesh have it. uint8 [S, S, S / 8]: bit 7 of byte [x, y, 0] is voxel (x, y, 0), as
`numpy.unpackbits` has it; voxel (x, y, z) has its centre at ((x, y, z) + ½) / S − ½ in the object frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MEMBER = "occupancy.npy"


def pack(occupancy: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Pack [S, S, S] into bits."""
    return np.packbits(occupancy, axis=2)


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return bits that `pack` made as [S, S, S]."""
    return np.unpackbits(packed, axis=2).astype(bool)


def packed_fault(packed: NDArray[Any]) -> str | None:
    """Say what is wrong with packed voxels, or return None."""
    side = len(packed) if packed.ndim else 0
    if packed.dtype != np.uint8 or not side or packed.shape != (side, side, side // 8) or side % 8:
        return f"occupancy must be uint8 [S, S, S / 8], got {packed.dtype} {list(packed.shape)}"
    if not packed.any():
        return "no voxel is occupied"
    return None
