"""The list that goes with a set of shapes: licence, origin and near-duplicates of each."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

from drwr_dist.errors import UsageError

UNKNOWN = "unknown"


@dataclass(frozen=True)
class ManifestRow:
    """What is known about one object."""

    group: str  # near-duplicate group, unique over all categories
    licence: str = UNKNOWN  # SPDX name
    source: str = UNKNOWN  # where the shape comes from: package and version
    path: str = ""  # in that source
    author: str = ""  # whom the licence asks to name
    package: str = ""  # Debian package
    version: str = ""  # of it
    sha256: str = ""  # of its file


def read_manifest(path: str) -> dict[tuple[str, str], ManifestRow]:
    """Read a CSV with the columns category and name, and what else it has.

    Further columns: license (or licence), near_duplicate_group, source_package, version, path_in_package, author,
    package_sha256.

    Returns:
        (category, name) → row. Group numbers count per category.

    Raises:
        UsageError: the file can't be read, a column is missing, or an object is listed twice.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"manifest={path}: {error}") from error
    found: dict[tuple[str, str], ManifestRow] = {}
    for line, row in enumerate(rows, start=2):
        category, name = row.get("category"), row.get("name")
        if not category or not name:
            raise UsageError(f"manifest={path}: line {line}: columns category and name are needed")
        if (category, name) in found:
            raise UsageError(f"manifest={path}: line {line}: {category}/{name} is listed twice")
        found[category, name] = _row(row, category, name)
    return found


def _row(row: dict[str, str], category: str, name: str) -> ManifestRow:
    group = row.get("near_duplicate_group") or name
    package = " ".join(part for part in (row.get("source_package"), row.get("version")) if part)
    return ManifestRow(
        group=f"{category}/{group}",
        licence=row.get("license") or row.get("licence") or UNKNOWN,
        source=package or UNKNOWN,
        path=row.get("path_in_package") or "",
        author=row.get("author") or "",
        package=row.get("source_package") or "",
        version=row.get("version") or "",
        sha256=row.get("package_sha256") or "",
    )


def allowed(row: ManifestRow, licences: Sequence[str]) -> bool:
    """Say whether an object's licence is among those asked for; none asked for: all."""
    return not licences or row.licence in licences
