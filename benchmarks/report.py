"""How long report.html takes to open in Chromium: 200 objects of 2000 points, with pictures of 5 views.

python benchmarks/report.py [OBJECTS] — needs chromium, chromium-driver and the dev dependencies. WebGL is drawn in
software here; with a graphics card it is faster.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from drwr_dist.camera import world_to_camera_from_angles
from drwr_dist.data.sample import ObjectSample
from drwr_dist.report.content import describe
from drwr_dist.report.page import write_page
from drwr_dist.report.selection import by_error, error_metric, shown_views
from drwr_dist.results import DEFINITIONS
from drwr_dist.scores import object_metrics, summarise

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from browser import chromium, wait

POINTS, VIEWS, SIDE, REPEATS = 2000, 5, 128, 5


def sample(number: int) -> ObjectSample:
    random = np.random.default_rng(number)
    azimuths = torch.linspace(0, 5, VIEWS, dtype=torch.float64)
    images = random.integers(0, 256, (VIEWS, SIDE // 8, SIDE // 8, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    return ObjectSample(
        key=f"category{number % 4}/object{number:04d}",
        images=images,
        masks=images[..., 0],
        world_to_camera=world_to_camera_from_angles(azimuths, azimuths * 0).numpy(),
        focal_length=np.full(VIEWS, 1.875),
        points=random.uniform(-0.4, 0.4, (10_000, 3)).astype(np.float32),
    )


def build(folder: Path, objects: int) -> Path:
    views = shown_views(objects, VIEWS, POINTS)
    clouds = torch.from_numpy(np.random.default_rng(0).uniform(-0.4, 0.4, (VIEWS, POINTS, 3)).astype(np.float32))
    described, texts, rows = [], {}, {}
    for number in range(objects):
        each = sample(number)
        facts, texts[each.key] = describe(each, lambda images, category: clouds[: len(images)], views, 1.0)
        rows[each.key] = object_metrics(clouds[:1], each)
        described.append(facts)
    block = summarise(rows, VIEWS)
    head = dict.fromkeys(("run", "split", "step", "written", "version", "data", "points", "seed"), "benchmark")
    content = {
        "head": head,
        "definitions": DEFINITIONS,
        "splits": {"benchmark": {**block, "references": {}}},
        "rows": rows,
        "order": by_error(rows),
        "error": error_metric(rows),
        "objects": described,
        "distance_scale": 0.1,
        "curves": [{"title": "losses", "steps": list(range(600)), "series": {"loss": list(range(600))}}],
        "poses": None,
    }
    return write_page(folder, "benchmark", content, texts)


def main() -> None:
    objects = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder, chromium() as window:
        path = build(Path(folder), objects)
        seconds, parsed = [], []
        for _ in range(REPEATS):
            window.get("about:blank")
            window.get(path.as_uri())
            seconds.append(int(str(wait(window, "document.body.dataset.ready", 60))) / 1000)
            parsed.append(
                window.execute_script("return performance.getEntriesByType('navigation')[0].domInteractive") / 1000
            )
        print(f"{objects} objects of {POINTS} points, {path.stat().st_size / 1e6:.1f} MB")
        print(f"first shape drawn after {statistics.median(seconds):.2f} s (median of {REPEATS}: {seconds}), "
              f"of which reading the file {statistics.median(parsed):.2f} s")  # fmt: skip


if __name__ == "__main__":
    main()
