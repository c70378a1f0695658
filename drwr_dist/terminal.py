"""Where verbs print."""

from __future__ import annotations

import os

from rich.console import Console

LOG_WIDTH = 140  # columns of a log, which has no width of its own: no table is cut there


def console(stderr: bool = False) -> Console:
    """Return the terminal, or a log that is wide enough for every table."""
    found = Console(stderr=stderr)
    return found if found.is_terminal else Console(stderr=stderr, width=max(found.width, LOG_WIDTH))


def short(path: str | os.PathLike[str]) -> str:
    """Return a path as one would type it here: relative below this folder, else absolute."""
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith("..") else relative
