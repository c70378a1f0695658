"""Plain `.npy` arrays as bytes: nothing is unpickled, and no header reserves more memory than follows it. Pure."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_npy(array: NDArray[Any]) -> bytes:
    """Return an array as the bytes of a `.npy` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes) -> NDArray[Any]:
    """Return the array that bytes of a `.npy` file hold.

    Raises:
        ValueError: they are no such file, hold objects, or another size than the header promises.
    """
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    # NumPy would reserve what the header promises.
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"shape {shape} of {dtype} doesn't fit {len(data)} bytes")
    file.seek(0)
    array: NDArray[Any] = np.load(file, allow_pickle=False)
    return array
