"""What an evaluation found: result.json, result.txt and the table on the terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from drwr_dist.run import RESULT, load_result

RESULT_TEXT = "result.txt"

DEFINITIONS = {
    "chamfer": {
        "definition": "mean unsquared distance from each predicted point to the nearest ground-truth point, plus the "
        "same the other way; × 100; mean over input views (what DPC reports, as its two parts)",
        "unit": "1/100 of the unit cube's side",
    },
    "chamfer_predicted_to_target": {
        "definition": "the first of the two means in chamfer, × 100; mean over input views",
        "unit": "1/100 of the unit cube's side",
    },
    "chamfer_target_to_predicted": {
        "definition": "the second of the two means in chamfer, × 100; mean over input views",
        "unit": "1/100 of the unit cube's side",
    },
    "chamfer_best_view": {
        "definition": "chamfer of the best input view of each object, mean over objects (what the released code "
        "reports, over its five views)",
        "unit": "1/100 of the unit cube's side",
    },
    "chamfer_squared": {
        "definition": "as chamfer, of squared distances; × 10,000; mean over input views",
        "unit": "(1/100 of the unit cube's side)²",
    },
    "earth_mover": {
        "definition": "mean distance under the best one-to-one matching of equally many points of both clouds, "
        "drawn at random (evaluate earth_mover=POINTS); × 100; mean over input views",
        "unit": "1/100 of the unit cube's side",
    },
    "f_score_1": {
        "definition": "harmonic mean of the fractions of predicted and of ground-truth points that have a "
        "counterpart within 0.01; mean over input views",
        "unit": "fraction",
    },
    "f_score_2": {
        "definition": "as f_score_1, within 0.02",
        "unit": "fraction",
    },
    "silhouette_iou": {
        "definition": "intersection over union of the drawn projections and the silhouette, in the views other than "
        "the input view; mean over them and over input views",
        "unit": "fraction",
    },
    "voxel_iou": {
        "definition": "intersection over union, in 32³ voxels of the unit cube, of those whose centre is inside of "
        "the mesh and those that the points fill: within 2 voxel sides of a point, what these enclose filled, and 2 "
        "voxel sides taken off the outside again; mean over input views, over objects whose mesh is watertight",
        "unit": "fraction",
    },
}


def write_result(run: Path, split: str, step: int, block: dict[str, Any]) -> None:
    """Put one split's results beside those of other splits in result.json, and make result.txt anew."""
    result = load_result(run)
    if result.get("step") != step:
        result = {"step": step, "definitions": {}, "splits": {}}
    result["splits"][split] = block
    measured = {name for content in result["splits"].values() for name in content["overall"]}
    result["definitions"] = {name: entry for name, entry in DEFINITIONS.items() if name in measured}
    _replace(run / RESULT, json.dumps(result, indent=1) + "\n")
    text = io.StringIO()
    for name, content in result["splits"].items():
        print_table(Console(file=text, width=150), name, content)
    text.write(released_lines(result))
    notes = [f"{name}: {entry['definition']} ({entry['unit']})" for name, entry in result["definitions"].items()]
    _replace(run / RESULT_TEXT, text.getvalue() + "\n" + "\n".join(notes) + "\n")


def released_lines(result: dict[str, Any]) -> str:
    """Return the scores in the released format `STEP: SCORE`, and what they are; nothing where there is no Chamfer."""
    lines = [
        f"{split} {name} {result['step']}: {row['chamfer_best_view']}"
        for split, block in result["splits"].items()
        for name, row in _rows(block)
        if "chamfer_best_view" in row
    ]
    head = "chamfer_best_view in the released code's own format, STEP: SCORE:"
    return "\n".join([head, *lines]) + "\n" if lines else ""


def print_table(console: Console, split: str, block: dict[str, Any]) -> None:
    """Print one split's table: per category, Chamfer × 100 of the references and the trained network, and more."""
    table = _table_of_chamfer(split, block) if "chamfer" in block["overall"] else _table_of_silhouettes(split, block)
    console.print(table)
    if is_worse_than_untrained(block):
        console.print(
            "note: trained is worse than untrained: the training diverged, or was far too short; look at the loss",
            highlight=False,
            soft_wrap=True,
        )
    if "poses" in block:
        poses = block["poses"]
        console.print(
            f"predicted cameras: median rotation error {poses['rotation_error_median']:.1f}°, "
            f"{poses['accuracy_30']:.0%} within 30° ({poses['views']} views; aligned per category)",
            highlight=False,
            soft_wrap=True,
        )


def is_worse_than_untrained(block: dict[str, Any]) -> bool:
    """Say whether the Chamfer distance is plainly above that of the network before the first step."""
    before = block.get("references", {}).get("untrained", {}).get("overall", {}).get("chamfer")
    return bool(before is not None and block["overall"].get("chamfer", 0.0) > 1.05 * before)


def _table_of_chamfer(split: str, block: dict[str, Any]) -> Table:
    what = f"Chamfer × 100, mean over {block['views']} input views (best: the best one)"
    table = _empty_table(f"{split}{selected(block)}: {what}", ("untrained", "mean shape", "trained"))
    solid = ("voxel IoU",) if "voxel_iou" in block["overall"] else ()
    for name in ("best", "F@1%", "F@2%", "IoU", *solid):
        table.add_column(name, justify="right", style="dim", no_wrap=True)
    for name, row in _rows(block):
        table.add_row(
            name,
            str(row["objects"]),
            _reference(block, "untrained", name),
            _reference(block, "mean_shape", name),
            _number(row, "chamfer"),
            _number(row, "chamfer_best_view"),
            _number(row, "f_score_1", 3),
            _number(row, "f_score_2", 3),
            _number(row, "silhouette_iou", 3),
            *(_number(row, "voxel_iou", 3) for _ in solid),
        )
    return table


def _table_of_silhouettes(split: str, block: dict[str, Any]) -> Table:
    """Return what there is to say without ground truth."""
    what = f"silhouette IoU in the other views, mean over {block['views']} input views (no ground truth)"
    table = _empty_table(f"{split}{selected(block)}: {what}", ("untrained", "trained"))
    for name, row in _rows(block):
        untrained = _reference(block, "untrained", name, "silhouette_iou", 3)
        table.add_row(name, str(row["objects"]), untrained, _number(row, "silhouette_iou", 3))
    return table


def _empty_table(title: str, columns: tuple[str, ...]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=title)
    for name in ("category", "n", *columns):
        table.add_column(name, justify="left" if name == "category" else "right", no_wrap=True)
    return table


def _rows(block: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    return [*block["categories"].items(), ("all", block["overall"])]


def selected(block: dict[str, Any]) -> str:
    """Say of which part of its split a block is, where that is not all of it."""
    parts = [f"{what} {', '.join(names)}" for what, names in block.get("selection", {}).items()]
    return f" ({'; '.join(parts)})" if parts else ""


def _reference(block: dict[str, Any], reference: str, category: str, metric: str = "chamfer", digits: int = 2) -> str:
    found = block.get("references", {}).get(reference)
    if not found:
        return "-"
    return _number(found["categories"].get(category, found["overall"]), metric, digits)


def _number(row: dict[str, Any], name: str, digits: int = 2) -> str:
    return f"{row[name]:.{digits}f}" if name in row else "-"


def _replace(path: Path, content: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8")
    partial.replace(path)
