"""Several runs side by side on the same objects: means, bootstrap confidence intervals, and a plot."""

from __future__ import annotations

import functools
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from drwr_dist.errors import UsageError
from drwr_dist.results import DEFINITIONS

RESAMPLES = 10_000
LEVEL = 0.95  # of the confidence intervals
LINE, PLOT_WIDTH = 16, 640  # pixels: the height of a line, the length of an axis
SHOWN = ("chamfer", "chamfer_best_view", "f_score_2", "silhouette_iou", "voxel_iou")  # in the table on the terminal
COLOURS = ("#1f5fbf", "#e07b1a", "#2f9e5b", "#b5369c", "#8a6d3b", "#5b6b8c", "#c23b3b", "#139aa8")

Rows = Mapping[str, Mapping[str, float]]  # key of an object -> its scores


def compare(runs: Mapping[str, Rows]) -> dict[str, Any]:
    """Average each run over the objects that all have, and say how sure that is.

    Objects are drawn with replacement, the same draw for all runs: so the interval of a difference takes into account
    that an object that is hard for one run is hard for the other.

    Args:
        runs: name -> scores per object; the first is what the others are compared with.

    Returns:
        {"runs", "level", "resamples", "groups": {category or "all": {"objects", "metrics": {metric: {run: {"mean",
        "low", "high", "difference": {"mean", "low", "high"}}}}}}}; a group may have "objects_with_<metric>" too, where
        not all of its objects have that score.

    Raises:
        UsageError: there is no object that all runs have.
    """
    names = list(runs)
    common = sorted(set.intersection(*(set(rows) for rows in runs.values())))
    if not common:
        raise UsageError("runs: no object was measured in all of them; give data=… and split=… of one dataset")
    groups = {name: [key for key in common if key.split("/")[0] == name] for name in {k.split("/")[0] for k in common}}
    table: dict[str, Any] = {}
    for group, keys in [*sorted(groups.items()), ("all", common)]:
        content: dict[str, Any] = {"objects": len(keys), "metrics": {}}
        for metric in DEFINITIONS:
            scored = [key for key in keys if all(metric in rows[key] for rows in runs.values())]
            if not scored:
                continue
            values = np.array([[runs[name][key][metric] for key in scored] for name in names])
            content["metrics"][metric] = dict(zip(names, intervals(values, resampling(len(scored))), strict=True))
            if len(scored) < len(keys):
                content[f"objects_with_{metric}"] = len(scored)
        table[group] = content
    return {"runs": names, "level": LEVEL, "resamples": RESAMPLES, "groups": table}


@functools.lru_cache(maxsize=2)
def resampling(count: int, seed: int = 0) -> NDArray[np.float64]:
    """Return the weights of `count` objects in each bootstrap resample: [RESAMPLES, count], each row sums to 1."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def intervals(values: NDArray[np.float64], weights: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return mean and percentile interval of each run, and of its difference to the first.

    Args:
        values: [R, K], scores of R runs on K objects.
        weights: [S, K] of S resamples.
    """
    resampled = values @ weights.T  # [R, S]
    found: list[dict[str, Any]] = []
    for row, means in zip(values, resampled, strict=True):
        difference = _interval(row.mean() - values[0].mean(), means - resampled[0])
        found.append({**_interval(row.mean(), means), "difference": difference})
    return found


def _interval(mean: float, resampled: NDArray[np.float64]) -> dict[str, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def print_comparison(console: Console, split: str, table: dict[str, Any]) -> None:
    """Print means with their intervals; a star where the difference to the first run is more than chance."""
    shown = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=f"{split}: mean [{table['level']:.0%} interval]")
    metrics = [name for name in SHOWN if name in table["groups"]["all"]["metrics"]]
    metrics = metrics[: max(1, (console.width - 40) // 24)]  # as many as there is room for
    for name in ("category", "n", "run", *metrics):
        shown.add_column(name, justify="left" if name in ("category", "run") else "right", no_wrap=name != "run")
    for group, content in table["groups"].items():
        for place, run in enumerate(table["runs"]):
            cells = [_cell(content["metrics"].get(metric, {}).get(run)) for metric in metrics]
            head = (group, str(content["objects"])) if place == 0 else ("", "")
            shown.add_row(*head, run, *cells)
    console.print(shown)
    console.print(f"* differs from {table['runs'][0]}: the interval of the difference leaves out 0", highlight=False)
    if weights := table.get("weights"):
        trained = ", ".join(f"{run}: step {of['step']} of {of['steps']}" for run, of in weights.items())
        console.print(f"weights of {trained}", highlight=False, soft_wrap=True)


def _cell(found: Mapping[str, Any] | None) -> str:
    if found is None:  # no object of this category has the score
        return "-"
    difference = found["difference"]
    star = "*" if difference["low"] > 0 or difference["high"] < 0 else " "
    digits = 2 if found["high"] > 2 else 3
    return f"{found['mean']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]{star}"


def write_comparison(folder: Path, split: str, table: dict[str, Any]) -> list[Path]:
    """Write comparison.json, comparison.txt and comparison.svg; return their paths."""
    text = io.StringIO()
    print_comparison(Console(file=text, width=180), split, table)
    metrics = table["groups"]["all"]["metrics"]
    contents = {
        "comparison.json": json.dumps({"split": split, **table}, indent=1) + "\n",
        "comparison.txt": text.getvalue(),
        "comparison.svg": plot(table, [name for name in SHOWN if name in metrics] or list(metrics)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        partial = folder / f".{name}.partial"
        partial.write_text(content, encoding="utf-8")
        partial.replace(folder / name)
    return [folder / name for name in contents]


def plot(table: dict[str, Any], metrics: Sequence[str]) -> str:
    """Draw the means of some metrics with their intervals as SVG: a panel per metric, a line per category and run."""
    runs: Sequence[str] = table["runs"]
    longest = max(len(f"{group} (0000)") for group in table["groups"])
    left = max(110, 8 * longest)  # pixels; room for the categories' names
    parts = []
    for place, run in enumerate(runs):
        y = 22 + LINE * place
        parts.append(f'<circle cx="{left + 5}" cy="{y - 4}" r="5" fill="{COLOURS[place % len(COLOURS)]}"/>')
        parts.append(f'<text x="{left + 16}" y="{y}">{html.escape(run)}</text>')
    bottom = 22 + LINE * len(runs)
    for metric in metrics:
        panel, bottom = _panel(table, metric, left, bottom + 14)
        parts += panel
    size = f'width="{left + PLOT_WIDTH + 40}" height="{bottom + 12}"'
    style = 'font-family="system-ui, sans-serif" font-size="13" fill="#1d2433"'
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{background}{"".join(parts)}</svg>\n'


def _panel(table: dict[str, Any], metric: str, left: int, top: int) -> tuple[list[str], int]:
    """Draw one metric below `top`; return its elements and where it ends."""
    runs: Sequence[str] = table["runs"]
    groups = {name: content for name, content in table["groups"].items() if metric in content["metrics"]}
    band = LINE * len(runs) + 12
    highest = max(found["high"] for content in groups.values() for found in content["metrics"][metric].values()) or 1.0
    scale = PLOT_WIDTH / (highest * 1.05)
    first, bottom = top + 26, top + 26 + band * len(groups)
    title = f"{metric.replace('_', ' ')}: mean and {table['level']:.0%} interval"
    parts = [f'<text x="{left}" y="{top + 14}" font-weight="600">{html.escape(title)}</text>']
    for tick in ticks(highest):
        x = left + tick * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{first}" y2="{bottom}" stroke="#e3e7ee"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#667085">{tick:g}</text>')
    for number, (group, content) in enumerate(groups.items()):
        y = first + band * number + 12
        label = f"{html.escape(group)} ({content.get(f'objects_with_{metric}', content['objects'])})"
        parts.append(f'<text x="{left - 12}" y="{y + LINE * (len(runs) - 1) / 2 + 4}" text-anchor="end">{label}</text>')
        for place, run in enumerate(runs):
            found, colour, at = content["metrics"][metric][run], COLOURS[place % len(COLOURS)], y + LINE * place
            low, mean, high = (left + found[name] * scale for name in ("low", "mean", "high"))
            ends = f'x1="{low:.1f}" x2="{high:.1f}" y1="{at}" y2="{at}"'
            parts.append(f'<line {ends} stroke="{colour}" stroke-width="2"/>')
            parts.append(f'<circle cx="{mean:.1f}" cy="{at}" r="4.5" fill="{colour}"/>')
    return parts, bottom + 24


def ticks(highest: float) -> list[float]:
    """Return about six round numbers from 0 up to `highest`."""
    power = 10.0 ** np.floor(np.log10(highest / 6))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= highest / 6)
    return [float(f"{step * place:.6g}") for place in range(int(highest / step * 1.05) + 1)]
