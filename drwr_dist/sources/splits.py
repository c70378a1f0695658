"""Which object belongs to train, val or test: by group, so that near-duplicates never sit on both sides."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from drwr_dist.config import SPLITS
from drwr_dist.errors import DataError, UsageError

VAL_SHARE, TEST_SHARE = 0.1, 0.2
_MANY_GROUPS = 8  # from so many groups on, a category has at least 1 in val and 2 in test


def merge_groups(groups: Mapping[str, str], fingerprints: Mapping[str, str]) -> dict[str, str]:
    """Join groups whose members include exact copies of each other.

    Args:
        groups: key → declared group (unique over all categories).
        fingerprints: key → fingerprint of the shape; equal ones mean copies.

    Returns:
        key → group, named after the first of the joined groups.
    """
    parent = {group: group for group in groups.values()}

    def root(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    owner: dict[str, str] = {}
    for key in sorted(groups):
        mine = root(groups[key])
        other = root(owner.setdefault(fingerprints[key], mine))
        parent[max(mine, other)] = min(mine, other)
    return {key: root(group) for key, group in groups.items()}


def assign_splits(groups: Mapping[str, str], seed: int) -> dict[str, str]:
    """Split each category's groups about 70 / 10 / 20, in an order drawn from the seed.

    With 8 groups or more a category has at least one in val and two in test; one group alone is train. A group
    that spans categories goes where its first category (in sorted order) puts it.

    Args:
        groups: key `<category>/<object id>` → group.
        seed: of the order; a group's place in it depends on nothing but its name and the seed.

    Returns:
        key → train, val or test.
    """
    categories: dict[str, set[str]] = defaultdict(set)
    for key, group in groups.items():
        categories[key.split("/", 1)[0]].add(group)
    chosen: dict[str, str] = {}
    for category in sorted(categories):
        mine = sorted(categories[category], key=lambda group: _draw(seed, category, group))
        test, val = _counts(len(mine))
        for place, group in enumerate(mine):
            split = "test" if place < test else "val" if place < test + val else "train"
            chosen.setdefault(group, split)
    return {key: chosen[group] for key, group in groups.items()}


def _counts(groups: int) -> tuple[int, int]:
    """Return the number of test and val groups among so many."""
    test, val = round(groups * TEST_SHARE), round(groups * VAL_SHARE)
    if groups >= _MANY_GROUPS:
        test, val = max(test, 2), max(val, 1)
    return test, val


def _draw(seed: int, *names: str) -> bytes:
    return hashlib.sha256("\0".join([str(seed), *names]).encode("utf-8")).digest()


def shuffled(keys: Sequence[str], seed: int) -> list[str]:
    """Return keys in an order that depends on their names and the seed alone; mixes the categories."""
    return sorted(keys, key=lambda key: _draw(seed, "order", key))


def read_splits(path: str, groups: Mapping[str, str]) -> dict[str, str]:
    """Read key → split from JSON ({"chair/a": "train", …}) or CSV (columns key, split).

    Raises:
        UsageError: the file can't be read or doesn't have that form.
        DataError: a key is missing, a split unknown, or a group would sit on both sides.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        if path.endswith(".json"):
            table = {str(key): str(split) for key, split in json.loads(text).items()}
        else:
            table = {row["key"]: row["split"] for row in csv.DictReader(text.splitlines())}
    except OSError as error:
        raise UsageError(f"splits={path}: {error.strerror}") from error
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError, csv.Error) as error:
        raise UsageError(f"splits={path}: neither JSON {{key: split}} nor CSV with columns key,split") from error
    seen: dict[str, tuple[str, str]] = {}
    for key, group in groups.items():
        if key not in table:
            raise DataError(f"splits={path}: {key} is missing")
        if table[key] not in SPLITS:
            raise DataError(f"splits={path}: {key}: split {table[key]!r} is none of {', '.join(SPLITS)}")
        other, split = seen.setdefault(group, (key, table[key]))
        if split != table[key]:
            raise DataError(
                f"splits={path}: {key} ({table[key]}) and {other} ({split}) are near-duplicates (group {group}); "
                "put both in one split"
            )
    return {key: table[key] for key in groups}
