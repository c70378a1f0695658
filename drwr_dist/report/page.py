"""One HTML file out of a page, its style, its scripts and its data."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

REPORT = "report.html"
# In this order: each file may use what those before it define.
SCRIPTS = ("vendor/viewer.min.js", "format.js", "viewer.js", "views.js", "table.js", "curves.js", "main.js")
STYLES = ("vendor/uPlot.min.css", "style.css")


def write_page(folder: Path, title: str, content: dict[str, Any], texts: Mapping[str, Mapping[str, str]]) -> Path:
    """Write report.html and return its path.

    Args:
        folder: where.
        title: of the page.
        content: what the page shows at once; parsed when it opens.
        texts: per object, texts that are read only when the object is looked at: nothing parses them before.
    """
    data = [f'<script type="application/json" id="content">{_as_json(content)}</script>']
    for number, entry in enumerate(content["objects"]):
        for name, text in texts[entry["key"]].items():
            data.append(f'<script type="text/plain" id="{name}-{number}">{text}</script>')
    page = _read("page.html")
    # One pass each, the data last: nothing in it is taken for a placeholder.
    page = page.replace("{{title}}", html.escape(title))
    page = page.replace("{{style}}", "\n".join(_read(name) for name in STYLES))
    before, after = page.split("{{data}}")
    scripts = "".join(f"<script>{_read(name)}</script>\n" for name in SCRIPTS)
    partial = folder / f".{REPORT}.partial"
    partial.write_text(before + "\n".join(data) + after.replace("{{scripts}}", scripts), encoding="utf-8")
    partial.replace(folder / REPORT)
    return folder / REPORT


def _read(name: str) -> str:
    return resources.files("drwr_dist.report").joinpath(name).read_text(encoding="utf-8")


def _as_json(content: Any) -> str:
    """Return JSON that can stand in a script element, whatever names the data has."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
