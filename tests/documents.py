"""The documents as the tests read them: code blocks, commands, words in code style, headings and links."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toy import REPOSITORY

PAGES = sorted(
    [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", REPOSITORY / "tests/golden/README.md"]
    + [path for folder in ("docs", "launch", "shards") for path in (REPOSITORY / folder).rglob("*.md")]
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """Return the words of each command of a shell block, without comments; `…` ends one."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [words for line in lines if (words := _words(line))]


def _words(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    return words[: words.index("…")] if "…" in words else words


def blocks(page: Path) -> Iterator[Block]:
    """Find the fenced blocks of a page; they may be indented, in a list."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("```"):
            continue
        if start is None:
            start = number
            continue
        indent = len(lines[start - 1]) - len(lines[start - 1].lstrip())
        text = "\n".join(each[indent:] for each in lines[start : number - 1])
        yield Block(page, start, lines[start - 1].strip().removeprefix("```"), text)
        start = None
    assert start is None, f"{page}: the block of line {start} has no end"


def commented(path: Path) -> Block | None:
    """Return the commands in the comment at the head of a launch file or preset: its lines that are set in."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = 1 if lines and lines[0].startswith("#!") else 0
    head = itertools.takewhile(lambda line: line.startswith("#"), lines[start:])
    inside = [line.removeprefix("#").strip() for line in head if line.startswith("#   ")]
    return Block(path, 1, "sh", "\n".join(inside)) if inside else None


def prose(page: Path) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^[ ]*```.*?^[ ]*```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def spans(page: Path) -> list[str]:
    """Return what stands `in code style` outside of blocks, on one line each."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """Return the targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
