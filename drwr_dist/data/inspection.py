"""Looking at a dataset: its numbers as a table, a contact sheet, and a page with views and ground truth in 3D."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

from drwr_dist.config import SPLITS
from drwr_dist.data.index import DatasetIndex, read_sample
from drwr_dist.data.sample import ObjectSample, decode_sample, split_members
from drwr_dist.errors import UsageError

_SHOWN_POINTS = 1500  # of the ground truth of each object on the page

LABEL = 14  # pixels; height of a line that names an object


def summary_table(index: DatasetIndex) -> Table:
    """Return a table of categories, splits and counts."""
    table = Table()
    table.add_column("category")
    for split in SPLITS:
        table.add_column(split, justify="right")
    for category, counts in sorted(index.categories.items()):
        table.add_row(category, *(str(counts.get(split, 0)) for split in SPLITS))
    totals = [sum(shard.nsamples for _, shard in index.split(split)) for split in SPLITS]
    table.add_section()
    table.add_row("all", *map(str, totals))
    return table


def print_summary(index: DatasetIndex, console: Console) -> None:
    """Print what an index says."""
    side = index.image_size
    console.print(f"{index.name}: {index.views} views of {side} × {side} pixels per object", markup=False)
    console.print(summary_table(index))
    console.print(facts(index), markup=False, soft_wrap=True, highlight=False)


def facts(index: DatasetIndex) -> str:
    """Return size, licences and sources as a few lines of text."""
    size = sum(shard.filesize for shard in index.shards)
    lines = [f"{len(index.shards)} shards, {size / 2**20:.1f} MiB; focal length {index.focal_length:g}"]
    for what, counts in (("licences", index.licences), ("sources", index.sources)):
        lines.append(f"{what}: " + ", ".join(f"{name} ({count})" for name, count in counts.items()))
    return "\n".join(lines)


def listing(index: DatasetIndex) -> str:
    """Return one line per object, `split category/object`, in the order of the keys."""
    return "\n".join(f"{split:5} {key}" for key, split, _, _ in _places(index))


def what_is_shown(index: DatasetIndex, rows: int) -> str:
    """Say how many of the objects a sheet or a page shows, and how to see all."""
    places = _places(index)
    objects, shown = len(places), len(_evenly(places, rows))
    return f"{shown} of {objects} objects" + (f"; rows={objects} shows all" if shown < objects else "")


Place = tuple[str, str, int, int]  # key, split, shard, position in it


def _places(index: DatasetIndex) -> list[Place]:
    return sorted((key, split, number, place) for split in SPLITS for number, place, key in index.select(split))


def _evenly(places: list[Place], rows: int) -> list[Place]:
    return places[:: max(1, -(-len(places) // max(1, rows)))]


def _spread(index: DatasetIndex, rows: int, views: int) -> Iterator[tuple[str, ObjectSample]]:
    """Read so many objects, spread evenly over the keys, with at most so many views on white: (split, sample)."""
    for key, split, number, position in _evenly(_places(index), rows):
        shard = index.shards[number].url
        members = split_members(read_sample(index, number, position), key=key, shard=shard)
        stored = sum(name.endswith(".mask.png") for name in members)
        shown = list(range(min(views, stored)))
        sample = decode_sample(members, key=key, shard=shard, views=shown, with_points=True, background=1.0)
        yield split, sample


def write_sheet(index: DatasetIndex, path: str, rows: int, views: int = 8) -> None:
    """Draw objects, spread evenly over the dataset, as a PNG: an object per row under its name, a view per column.

    Raises:
        UsageError: the file can't be written.
        DataError: a sample is damaged.
    """
    strips = []
    width = min(views, index.views) * index.image_size
    for split, sample in _spread(index, rows, views):
        strip = np.concatenate(list(sample.images), axis=1)
        padding = np.full((len(strip), max(0, width - strip.shape[1]), 3), 255, np.uint8)
        strips += [_label(f"{sample.key}  ({split})", width), np.concatenate([strip, padding], axis=1)]
    try:
        Image.fromarray(np.concatenate(strips, axis=0)).save(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"sheet={path}: {error}") from error


def _label(text: str, width: int) -> NDArray[np.uint8]:
    """Return a line of text [LABEL, width, 3], dark on white."""
    line = Image.new("RGB", (width, LABEL), "white")
    ImageDraw.Draw(line).text((3, 2), text, fill=(60, 60, 60))
    return np.asarray(line)


def write_page(index: DatasetIndex, path: str, rows: int, views: int = 8) -> None:
    """Write an HTML page that needs nothing else: views, facts and a turnable ground truth of some objects.

    Raises:
        UsageError: the file can't be written.
        DataError: a sample is damaged.
    """
    objects = "\n".join(_object_html(split, sample) for split, sample in _spread(index, rows, views))
    counts = "".join(
        f"<tr><td>{html.escape(name)}</td>{''.join(f'<td>{table.get(split, 0)}</td>' for split in SPLITS)}</tr>"
        for name, table in sorted(index.categories.items())
    )
    page = _PAGE.format(
        title=html.escape(index.name),
        facts=html.escape(facts(index)).replace("\n", "<br>"),
        head="".join(f"<th>{split}</th>" for split in SPLITS),
        counts=counts,
        objects=objects,
        script=_SCRIPT,
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"page={path}: {error.strerror or error}") from error


def _object_html(split: str, sample: ObjectSample) -> str:
    images = "".join(f'<img src="{_data_uri(image)}" alt="view {view}">' for view, image in enumerate(sample.images))
    shown = ("licence", "author", "source", "near_duplicate_group")
    about = " · ".join(f"{name.replace('_', ' ')}: {sample.meta[name]}" for name in shown if sample.meta.get(name))
    cloud = "<em>no ground truth</em>" if sample.points is None else _cloud_html(sample.points)
    heading = f"<h2>{html.escape(sample.key)} <small>{split}</small></h2>"
    return f'<section>{heading}<p>{html.escape(about)}</p><div class="row">{cloud}{images}</div></section>'


def _cloud_html(points: NDArray[np.float32]) -> str:
    """Put points [M, 3] of the unit cube into the page as 16-bit fractions of it."""
    some = points[:: max(1, -(-len(points) // _SHOWN_POINTS))]
    packed = np.rint(np.clip(some, -1, 1) * 32767).astype("<i2").tobytes()
    return f'<canvas width="128" height="128" data-points="{base64.b64encode(packed).decode()}"></canvas>'


def _data_uri(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222 }}
h2 {{ font-size: 1em; margin: 1.5em 0 0 }} small, p {{ color: #777 }} p {{ margin: 0 0 .3em; font-size: .85em }}
td, th {{ padding: 0 .8em 0 0; text-align: right }} td:first-child {{ text-align: left }}
.row {{ display: flex; flex-wrap: wrap; gap: 2px }}
img, canvas {{ width: 128px; height: 128px; background: #fff; border: 1px solid #ddd; image-rendering: pixelated }}
canvas {{ cursor: grab; touch-action: none }}
</style></head><body>
<h1>{title}</h1><p>{facts}</p><table><tr><th></th>{head}</tr>{counts}</table>
<p>Drag the ground truth to turn it.</p>
{objects}
<script>{script}</script></body></html>
"""

_SCRIPT = """
for (const canvas of document.querySelectorAll("canvas")) {
  const bytes = Uint8Array.from(atob(canvas.dataset.points), c => c.charCodeAt(0));
  const points = new Int16Array(bytes.buffer), pen = canvas.getContext("2d"), size = canvas.width;
  let azimuth = 0.7, elevation = 0.35, from = null;
  function draw() {
    const ca = Math.cos(azimuth), sa = Math.sin(azimuth), ce = Math.cos(elevation), se = Math.sin(elevation);
    const seen = [];
    for (let i = 0; i < points.length; i += 3) {
      const [x, y, z] = [points[i], points[i + 1], points[i + 2]].map(v => v / 32767);
      const along = x * ca + z * sa;  // towards the camera, on the ground
      seen.push([2 - (along * ce + y * se), x * sa - z * ca, along * se - y * ce]);
    }
    seen.sort((a, b) => b[0] - a[0]);
    pen.clearRect(0, 0, size, size);
    for (const [depth, right, down] of seen) {
      const shade = Math.round(40 + 160 * Math.min(1, Math.max(0, depth - 1.5)));
      pen.fillStyle = `rgb(${shade - 30},${shade},230)`;
      pen.fillRect(size * (0.5 + 1.875 * right / depth) - 0.75, size * (0.5 + 1.875 * down / depth) - 0.75, 1.5, 1.5);
    }
  }
  canvas.onpointerdown = event => { from = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); };
  canvas.onpointerup = () => { from = null; };
  canvas.onpointermove = event => {
    if (!from) return;
    azimuth -= (event.clientX - from[0]) / 60;
    elevation = Math.min(1.5, Math.max(-1.5, elevation + (event.clientY - from[1]) / 60));
    from = [event.clientX, event.clientY];
    draw();
  };
  draw();
}
"""
