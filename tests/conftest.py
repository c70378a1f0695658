from __future__ import annotations

from pathlib import Path

import pytest
from toy import make_dataset


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 24 rendered boxes: 2 categories, 5 views of 64 × 64, shards of 4 objects. Never write to it."""
    return make_dataset(tmp_path_factory.mktemp("toy"))
