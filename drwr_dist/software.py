"""Which software a node runs, found without importing it: PyTorch alone would take seconds.

It travels to other nodes by value, which may have another version of this package or none: the standard library alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

PACKAGES = ("drwr_dist", "torch")


def installed() -> dict[str, str]:
    """Return package → version that is installed here, or "missing"; for drwr_dist with a digest of its code."""
    return {name: _version(name) for name in PACKAGES}


def code_digest(folder: Path) -> str:
    """Return 7 hexadecimal digits for the Python files below a folder: their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:7]


def _version(name: str) -> str:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        return "missing"
    folder = Path(found.origin).parent
    match = re.search(r"^__version__ = ['\"](.+)['\"]", (folder / "version.py").read_text(), re.MULTILINE)
    version = match.group(1) if match else "unknown"
    return f"{version} ({code_digest(folder)})" if name == "drwr_dist" else version
