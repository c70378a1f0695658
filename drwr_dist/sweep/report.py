"""`report.html` of a sweep: one file that needs no network, drawn by Plotly."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from drwr_dist.config import TuneConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable
from drwr_dist.evaluate import PREDICTIONS
from drwr_dist.point_cloud import read_ply
from drwr_dist.sweep import trials as journal
from drwr_dist.sweep.importance import importances
from drwr_dist.sweep.leaderboard import as_text, describe
from drwr_dist.sweep.measuring import SPLIT
from drwr_dist.sweep.selection import pareto, ranking
from drwr_dist.sweep.space import Parameter
from drwr_dist.sweep.trials import FAILED, FINISHED, Trial

REPORT = "report.html"
SHOWN_POINTS = 2000  # of a ground truth
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .25em .8em; border-bottom: 1px solid #ddd }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums } .note { color: #666 }
"""


def write_report(
    sweep: Path,
    config: TuneConfig,
    space: dict[str, Parameter],
    trials: Sequence[Trial],
    winners: Sequence[Trial],
    result: dict[str, Any],
) -> Path:
    """Write the report of a finished sweep and return its path."""
    metric = config.sweep.metric
    categories = list(dict.fromkeys(trial.category for trial in trials))
    figures = [
        ("Parallel coordinates", "Drag along an axis to select trials. Colour: rank within the category, blue is best.",
         parallel_coordinates(trials, space, categories, metric)),
        (f"{metric} over steps", f"On {SPLIT}, a line per trial; click in the legend to hide a category.",
         curves(trials, metric)),
        (f"{metric} against time", "Finished trials; the line joins those that none surpasses in both. The time is "
         "that of the training steps, on machines that other trials share.", trade_off(trials, categories, metric)),
        ("Importance", "Share of each key in what tells the best trials from the rest (PED-ANOVA); with few trials a "
         "hint, not a measurement.", importance_bars(trials, space, categories, metric)),
    ]  # fmt: skip
    figures += [
        (f"Shape: {trial.category}", note, figure)
        for trial in winners
        for note, figure in shape(sweep, config, trial, metric)
    ]
    body = [f"<h1>Sweep {html.escape(config.name)}</h1>", _winners_table(result), _failures(trials)]
    scripts: bool | str = "inline"  # once: it is the library itself
    for title, note, figure in figures:
        if figure is None:
            continue
        body.append(f"<h2>{html.escape(title)}</h2><p class=note>{html.escape(note)}</p>")
        body.append(figure.to_html(full_html=False, include_plotlyjs=scripts, config={"displaylogo": False}))
        scripts = False
    page = f"<!doctype html><html lang=en><meta charset=utf-8><title>Sweep {html.escape(config.name)}</title>"
    page += f"<style>{STYLE}</style><body>{''.join(body)}</body></html>"
    partial = sweep / f".{REPORT}.partial"
    partial.write_text(page, encoding="utf-8")
    partial.replace(sweep / REPORT)
    return sweep / REPORT


def _winners_table(result: dict[str, Any]) -> str:
    head = ["for", "trial", f"{result['metric']} on {result['split']}", "default", f"on {result['test_split']}"]
    rows = [(name, row) for name, row in result["best"].items()]
    rows += [(f"shared best, {name}", row) for name, row in result["shared"]["categories"].items()]
    lines = ["<h2>Winners</h2><table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head)]
    lines[0] += "<th>parameters</th></tr>"
    for name, row in rows:
        numbers = [row["validation"], row["validation_default"], row["test"]]
        cells = "".join(f"<td class=number>{'–' if n is None else f'{n:.4g}'}</td>" for n in numbers)
        values = ", ".join(f"{key} {as_text(value)}" for key, value in row["parameters"].items())
        lines.append(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(row['trial'])}</td>{cells}"
            f"<td>{html.escape(values)}</td></tr>"
        )
    return "".join(lines) + "</table>"


def _failures(trials: Sequence[Trial]) -> str:
    failed = [trial for trial in trials if trial.state == FAILED]
    if not failed:
        return ""
    rows = "".join(
        f"<tr><td>{html.escape(trial.id)}</td><td>{html.escape(trial.reason)}</td>"
        f"<td>{html.escape(describe(trial))}</td></tr>"
        for trial in failed
    )
    return f"<h2>Failed trials</h2><table><tr><th>trial</th><th>reason</th><th>parameters</th></tr>{rows}</table>"


def parallel_coordinates(
    trials: Sequence[Trial], space: dict[str, Parameter], categories: Sequence[str], metric: str
) -> Any:
    """Draw a line per measured trial through its category, its parameters and its result."""
    import plotly.graph_objects as go

    orders = {name: ranking(trials, name, metric) for name in categories}
    placed = [(number, trial) for order in orders.values() for number, trial in enumerate(order, 1)]
    if not placed:
        return None
    own = [trial for _, trial in placed]
    numbers = [categories.index(trial.category) for trial in own]
    axes = [{"label": "category", "values": numbers, "tickvals": list(range(len(categories))), "ticktext": categories}]
    axes += [_axis(parameter, [trial.parameters[key] for trial in own]) for key, parameter in space.items()]
    values = [trial.last["value"] for trial in own if trial.last]
    logarithmic = _scale(metric) == "log" and min(values) > 0
    axes.append(_log_axis(metric, values, min(values), max(values)) if logarithmic else _linear_axis(metric, values))
    line = {"color": [rank for rank, _ in placed], "colorscale": "RdYlBu_r", "showscale": True, "cmin": 1}
    figure = go.Figure(go.Parcoords(line=line, dimensions=axes))
    return figure.update_layout(height=460, margin={"l": 80, "r": 60, "t": 60, "b": 30})


def _axis(parameter: Parameter, values: list[Any]) -> dict[str, Any]:
    """Return an axis: choices side by side, log ranges in powers of ten."""
    label = parameter.key.rsplit(".", 1)[-1]
    if parameter.kind == "choice":
        places = [*parameter.values, *(value for value in values if value not in parameter.values)]
        texts = [as_text(value) for value in places]
        numbers = [places.index(value) for value in values]
        return {"label": label, "values": numbers, "tickvals": list(range(len(texts))), "ticktext": texts}
    if not parameter.log:
        return _linear_axis(label, values)
    return _log_axis(label, values, parameter.low, parameter.high)


def _linear_axis(label: str, values: list[float]) -> dict[str, Any]:
    return {"label": label, "values": values}


def _log_axis(label: str, values: list[float], low: float, high: float) -> dict[str, Any]:
    ticks = np.geomspace(low, high, 5)
    return {
        "label": label,
        "values": [math.log10(value) for value in values],
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [as_text(float(tick)) for tick in ticks],
    }


def _scale(metric: str) -> str:
    """Return the kind of axis: one trial that diverged must not flatten all other distances."""
    return "log" if metric == "chamfer" else "linear"


def curves(trials: Sequence[Trial], metric: str) -> Any:
    """Draw the metric of each trial over its steps."""
    import plotly.express as px
    import plotly.graph_objects as go

    figure = go.Figure()
    colours = px.colors.qualitative.D3
    categories = list(dict.fromkeys(trial.category for trial in trials))
    for trial in trials:
        if not trial.history:
            continue
        number = categories.index(trial.category)
        figure.add_scatter(
            x=[row["step"] for row in trial.history],
            y=[row["value"] for row in trial.history],
            mode="lines+markers",
            name=trial.category,
            legendgroup=trial.category,
            showlegend=not any(trace.name == trial.category for trace in figure.data),
            line={"color": colours[number % len(colours)], "width": 3 if trial.candidate == 0 else 1},
            hovertext=f"{trial.id} ({trial.state}): {describe(trial)}",
        )
    return figure.update_layout(
        height=420, xaxis_title="step", yaxis_title=metric, yaxis_type=_scale(metric), margin={"t": 20}
    )


def trade_off(trials: Sequence[Trial], categories: Sequence[str], metric: str) -> Any:
    """Draw each category's trials over their training time, and the front of the best trade-offs."""
    import plotly.express as px
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, category in enumerate(categories):
        colour = px.colors.qualitative.D3[number % len(px.colors.qualitative.D3)]
        own = [t for t in ranking(trials, category, metric) if t.state == FINISHED]
        for name, points, mode in (("", own, "markers"), (" front", pareto(trials, category, metric), "lines")):
            figure.add_scatter(
                x=[trial.last["seconds"] for trial in points if trial.last],
                y=[trial.last["value"] for trial in points if trial.last],
                mode=mode,
                name=category + name,
                marker={"color": colour},
                line={"color": colour},
                hovertext=[f"{trial.id}: {describe(trial)}" for trial in points],
            )
    return figure.update_layout(
        height=420, xaxis_title="seconds", yaxis_title=metric, yaxis_type=_scale(metric), margin={"t": 20}
    )


def importance_bars(
    trials: Sequence[Trial], space: dict[str, Parameter], categories: Sequence[str], metric: str
) -> Any:
    """Draw the importance of each key, per category and over all."""
    import plotly.graph_objects as go

    found = importances(trials, space, categories, metric)
    if not found:
        return None
    figure = go.Figure()
    for name, shares in found.items():
        figure.add_bar(name=name, x=list(space), y=[shares.get(key, 0.0) for key in space])
    return figure.update_layout(height=380, barmode="group", yaxis_title="share", margin={"t": 20})


def shape(sweep: Path, config: TuneConfig, trial: Trial, metric: str) -> list[tuple[str, Any]]:
    """Draw the test object of median error of a winner beside its ground truth: (note, figure), or nothing."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    folder = journal.folder(sweep, trial) / PREDICTIONS
    found = sorted((folder / trial.category).glob("*.00.ply"))
    if not found or not config.sweep.test_split:
        return []
    table = SampleTable.select(load_index(config.data.path), config.sweep.test_split, [trial.category])
    key = f"{trial.category}/{found[len(found) // 2].name.removesuffix('.00.ply')}"
    if key not in table.keys:
        return []
    clouds = [("prediction", read_ply(folder / f"{key}.00.ply"))]
    truth = table.read(table.keys.index(key), views=[0], with_points=True).points
    if truth is not None:
        clouds.append(("ground truth", truth[:: max(1, len(truth) // SHOWN_POINTS)]))
    figure = make_subplots(
        1, len(clouds), specs=[[{"type": "scene"}] * len(clouds)], subplot_titles=[n for n, _ in clouds]
    )
    for column, (_, points) in enumerate(clouds, 1):
        # The object frame has y up, Plotly z: a turn about x.
        x, y, z = points[:, 0], -points[:, 2], points[:, 1]
        marker = {"size": 2, "color": z, "colorscale": "Viridis"}
        figure.add_trace(go.Scatter3d(x=x, y=y, z=z, mode="markers", marker=marker), row=1, col=column)
    hidden = {"visible": False}
    figure.update_scenes(xaxis=hidden, yaxis=hidden, zaxis=hidden, aspectmode="data")
    figure.update_layout(height=420, showlegend=False, margin={"l": 0, "r": 0, "t": 40, "b": 0})
    return [(f"{key} of trial {trial.id}, from its first view; drag to turn.", figure)]
