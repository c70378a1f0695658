"""What a check found at one place, and how all of it is shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Finding:
    """One check at one place; `ok` is None where there is something to do but nothing wrong."""

    place: str  # a file, host or node
    check: str  # short; the heading of its column
    ok: bool | None
    value: str  # what was found, for the table's cell
    reason: str = ""  # where not ok: what is wrong and what mends it


def failed(findings: Iterable[Finding]) -> bool:
    """Say whether a finding is a failure."""
    return any(finding.ok is False for finding in findings)


def print_findings(console: Console, title: str, findings: Sequence[Finding]) -> None:
    """Print what was found.

    First what is the same and right wherever it was looked at; then a table of the rest, a place a row, a check a
    column; and a line for each failure and each thing to do.
    """
    places = list(dict.fromkeys(finding.place for finding in findings))
    checks = list(dict.fromkeys(finding.check for finding in findings))
    cells = {(finding.place, finding.check): finding for finding in findings}
    same = {check: value for check in checks if (value := _common_value(check, places, cells)) is not None}
    if same:
        everywhere = ", ".join(f"{check} {value}" for check, value in same.items())
        console.print(f"{title}, {', '.join(places) if len(places) == 1 else f'all {len(places)}'}: {everywhere}",
                      highlight=False, soft_wrap=True)  # fmt: skip
        checks = [check for check in checks if check not in same]
    if checks and len(places) > 1:
        console.print(_table(title, places, checks, cells))
    print_failures(console, findings)


def print_failures(console: Console, findings: Iterable[Finding]) -> None:
    """Print a line for each failure and each thing to do."""
    for finding in findings:
        if not finding.ok:
            word, style = ("to do", "yellow") if finding.ok is None else ("FAILED", "bold red")
            line = Text.assemble((word, style), f" {finding.place}: {finding.check}: {finding.reason}")
            console.print(line, soft_wrap=True, highlight=False)


Cells = Mapping[tuple[str, str], Finding]


def _common_value(check: str, places: list[str], cells: Cells) -> str | None:
    """Return what a check found wherever it was made, or None where it is not the same or not right."""
    found = [cells[place, check] for place in places if (place, check) in cells]
    values = {finding.value for finding in found}
    if len(values) != 1 or not all(finding.ok for finding in found):
        return None
    return values.pop() + ("" if len(found) == len(places) else f" ({', '.join(finding.place for finding in found)})")


def _table(title: str, places: list[str], checks: list[str], cells: Cells) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=title, title_justify="left")
    table.add_column("", no_wrap=True)
    for check in checks:
        table.add_column(check, no_wrap=True)
    for place in places:
        table.add_row(place, *(_cell(cells.get((place, check))) for check in checks))
    return table


def _cell(finding: Finding | None) -> Text:
    if finding is None:
        return Text("-", style="dim")
    return Text(finding.value, style={True: "green", False: "bold red", None: "yellow"}[finding.ok])
