from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from golden_report import compare, print_table  # noqa: F401 (a fixture)
from hypothesis import settings
from toy import make_dataset

# Ray's workers would give way to whatever else runs, and the tests of the other process would keep them waiting.
os.environ.setdefault("RAY_worker_niceness", "0")

# Nothing is timed: machines are shared, and a slow example is no wrong one.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """Give every test the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest, so that the other process has something left to do beside it."""
    items.sort(key=lambda item: item.path.name != "test_train.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    print_table(terminalreporter)


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 24 rendered boxes: 2 categories, 5 views of 64 × 64, shards of 4 objects. Never write to it."""
    return make_dataset(tmp_path_factory.mktemp("toy"))
