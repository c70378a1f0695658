"""Numeric arrays out of MATLAB files: level 4 and 5 only, bounded, no objects, no functions, nothing that unpickles."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from drwr_dist.errors import DataError

MAX_BYTES = 256 * 2**20  # of a file
_NUMERIC = {"double", "single", "logical", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


def read_mat(path: Path, name: str, max_values: int = 30_000_000) -> NDArray[np.float64]:
    """Read one numeric variable of a MATLAB file.

    The list of variables is read first, so that neither an object nor a huge array is ever built.

    Args:
        path: of the file.
        name: of the variable.
        max_values: larger arrays are refused.

    Returns:
        The array in its own shape.

    Raises:
        DataError: names the file: missing, too large, not MATLAB's level 4 or 5, no such variable, not numeric, not
            finite.
    """
    import scipy.io

    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, more than the {MAX_BYTES} allowed")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    try:
        first, second = (cast(Any, io.BytesIO(data)) for _ in range(2))  # file objects, which the stubs don't know
        listed = scipy.io.whosmat(first)
        _check(listed, name, max_values)
        value: Any = scipy.io.loadmat(second, variable_names=[name])[name]
        array = np.asarray(value, dtype=np.float64)
    except MemoryError:
        raise
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except NotImplementedError as error:
        raise DataError(f"{path}: MATLAB 7.3 (HDF5) is not read; save it with -v7") from error
    except Exception as error:  # the reader raises nearly every kind of error on a damaged file
        raise DataError(f"{path}: not a readable MATLAB file ({type(error).__name__}: {error})") from error
    if not np.isfinite(array).all():
        raise DataError(f"{path}: {name} is not finite")
    return array


def _check(listed: Sequence[tuple[str, tuple[int, ...], str]], name: str, max_values: int) -> None:
    entries = [(shape, kind) for listed_name, shape, kind in listed if listed_name == name]
    if not entries:
        raise DataError(f"no variable {name!r}; there are {', '.join(entry[0] for entry in listed) or 'none'}")
    for shape, kind in entries:
        if kind not in _NUMERIC:
            raise DataError(f"{name} is of class {kind}, not a numeric array")
        if math.prod(shape) > max_values:
            raise DataError(f"{name} has {math.prod(shape)} values, more than the {max_values} allowed")
