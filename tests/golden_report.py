"""The comparison with golden arrays, and the table of the worst errors that a run ends with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

WORST: dict[str, tuple[float, float]] = {}  # quantity -> worst error, its limit

Compare = Callable[[str, object, object, float], None]


@pytest.fixture
def compare() -> Compare:
    """Compare with a golden array: largest difference over the largest entry, noted for the table at the end."""

    def check(quantity: str, actual: object, expected: object, limit: float) -> None:
        actual = actual.detach().numpy() if isinstance(actual, torch.Tensor) else np.asarray(actual)
        expected = np.asarray(expected)
        assert actual.shape == expected.shape, quantity
        scale = max(float(np.abs(expected).max()), np.finfo(np.float64).tiny)
        error = float(np.abs(actual.astype(np.float64) - expected).max()) / scale
        WORST[quantity] = (max(error, WORST.get(quantity, (0.0, limit))[0]), limit)
        assert error <= limit, f"{quantity}: {error:.2e} of the largest entry, at most {limit:.0e} is right"

    return check


def print_table(reporter: pytest.TerminalReporter) -> None:
    """Write the table, if golden tests ran."""
    if WORST:
        reporter.section("worst error against the released code, relative to the largest entry")
        for quantity, (error, limit) in sorted(WORST.items()):
            reporter.write_line(f"{quantity:44s} {error:8.1e}   (limit {limit:.0e})")
