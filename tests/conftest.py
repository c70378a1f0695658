from __future__ import annotations

from pathlib import Path

import pytest
import torch
from golden_report import compare, print_table  # noqa: F401 (a fixture)
from toy import make_dataset


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """Give every test the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    print_table(terminalreporter)


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 24 rendered boxes: 2 categories, 5 views of 64 × 64, shards of 4 objects. Never write to it."""
    return make_dataset(tmp_path_factory.mktemp("toy"))
