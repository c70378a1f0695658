"""docs/fidelity.md speaks of keys and files that exist."""

from __future__ import annotations

import re

from toy import REPOSITORY

from drwr_dist.config import TrainConfig, to_plain

TEXT = (REPOSITORY / "docs/fidelity.md").read_text()


def known_keys(content: dict[str, object], prefix: str = "") -> set[str]:
    keys = set()
    for key, value in content.items():
        keys |= known_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return keys


def test_every_key_that_it_names_exists():
    groups = "data|model|loss|optimizer|evaluation|cluster|checkpoint|loader"
    named = set(re.findall(rf"`((?:{groups})\.[a-z0-9_]+)", TEXT))
    assert len(named) > 30
    assert named <= known_keys(to_plain(TrainConfig())), named - known_keys(to_plain(TrainConfig()))


def test_every_file_that_it_names_exists():
    files = set(re.findall(r"(?:configs|tests)/[a-z0-9_.]+\.(?:yaml|py)", TEXT))
    assert len(files) >= 5
    assert [name for name in files if not (REPOSITORY / name).exists()] == []
