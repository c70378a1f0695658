"""How fast are silhouettes, rendering and decoding? Interleaved runs on one core, medians, ratios from one run.

    python benchmarks/shards.py                    # a table, and benchmarks/results/shards-<date>.json
    python benchmarks/shards.py --rounds 3 --output none

Times are CPU seconds of this process with one thread, so that other work on the machine disturbs them little. The
per-pixel loop goes over the background in Python and measures the distance to every pixel of the object with NumPy: the
straightforward way, and the way of the released preprocessing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import cv2
import numpy as np
import torch
import trimesh

from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.sample import decode_sample, encode_sample, split_members
from drwr_dist.data.stream import SampleTable
from drwr_dist.silhouette import smooth_silhouette
from drwr_dist.sources.geometry import Mesh, normalise
from drwr_dist.sources.manifest import ManifestRow
from drwr_dist.sources.meshes import MeshJob, MeshSettings, make_sample
from drwr_dist.sources.rendering import RenderSettings, random_cameras, render

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "shards" / "demo"
FACES = 5000  # at least so many; about the median of the open benchmark


def smooth_by_loop(mask: np.ndarray) -> np.ndarray:
    """Smooth one mask [H, W] pixel by pixel."""
    inside = np.argwhere(mask >= 0.95)
    smooth = mask.copy()
    for row, column in np.argwhere(mask == 0):
        distance = np.sqrt(((inside - (row, column)) ** 2).sum(axis=1)).min()
        smooth[row, column] = 220 / 255 - distance / (64 * np.sqrt(2))
    return smooth


def chair(seed: int) -> Mesh:
    """Make a chair of boxes and a torus, cut into about FACES triangles; in the unit cube."""
    random = np.random.default_rng(seed)
    seat = trimesh.creation.box((0.8, 0.08, 0.8))
    back = trimesh.creation.box((0.08, random.uniform(0.5, 1.0), 0.8))
    back.apply_translation((-0.36, 0.4, 0))
    ring = trimesh.creation.torus(0.35, 0.03, major_sections=40, minor_sections=20)
    ring.apply_translation((0, 0, -0.3))
    parts = [seat, back, ring]
    for x, z in ((-0.35, -0.35), (-0.35, 0.35), (0.35, -0.35), (0.35, 0.35)):
        leg = trimesh.creation.cylinder(0.04, random.uniform(0.5, 0.9), sections=24)
        leg.apply_transform(trimesh.transformations.rotation_matrix(np.pi / 2, (1, 0, 0)))
        leg.apply_translation((x, -0.4, z))
        parts.append(leg)
    whole = trimesh.util.concatenate(parts)
    while len(whole.faces) < FACES / 2:
        whole = whole.subdivide()
    return normalise(Mesh(np.asarray(whole.vertices), np.asarray(whole.faces)))[0]


def render_and_encode(mesh: Mesh, seed: int, render: RenderSettings, voxel: float = 0.0) -> int:
    """Do what an import does with a mesh that is read; return the number of views."""
    settings = MeshSettings(render, ground_truth_voxel=voxel, seed=seed)
    job = MeshJob(f"chair/{seed}", Path("none"), ManifestRow("g"), settings)
    _, similarity = normalise(mesh)
    sample = make_sample(job, mesh, similarity)
    encode_sample(sample, settings.compression)
    return len(sample.images)


def render_alone(mesh: Mesh, seed: int, settings: RenderSettings) -> int:
    return len(render(mesh, random_cameras(settings, np.random.default_rng(seed)), settings).images)


def cases(limit: int) -> dict[str, tuple[Callable[[int], int], str]]:
    """Name → (function of the round that returns how many units it did, unit)."""
    index = load_index(DEMO)
    table = SampleTable.select(index, "train")
    places = index.select("train")[:limit]
    masks = [(table.read(number).masks[0] / 255.0).round() for number in range(4)]
    meshes = [chair(seed) for seed in range(4)]
    tensors = torch.from_numpy(np.stack(masks)).float().repeat(8, 1, 1)

    def decode(turn: int, **what: Any) -> int:
        views = 0
        for number, position, key in places:
            members = split_members(read_sample(index, number, position), key=key)
            views += len(decode_sample(members, key=key, shard="s", **what).images)
        return views

    def loop(turn: int) -> int:
        smooth_by_loop(masks[turn % len(masks)])
        return 1

    def fast(turn: int) -> int:
        return len(smooth_silhouette(tensors))

    found: dict[str, tuple[Callable[[int], int], str]] = {
        "smooth silhouette, per-pixel loop": (loop, "images"),
        "smooth silhouette, ours": (fast, "images"),
        "decode all 8 views": (decode, "views"),
        "decode 4 of 8 views": (lambda turn: decode(turn, views=[0, 2, 4, 6]), "views"),
    }
    kinds = {f"{fine} × {fine} rays": RenderSettings(supersample=fine) for fine in (1, 2, 3)}
    kinds["3 × 3 rays in every pixel"] = RenderSettings(supersample=3, adaptive=False)
    for name, settings in kinds.items():
        found[f"render, {name}"] = (
            lambda turn, settings=settings: sum(render_alone(mesh, turn, settings) for mesh in meshes),
            "views",
        )
        found[f"render + PNG, {name}"] = (
            lambda turn, settings=settings: sum(render_and_encode(mesh, turn, settings) for mesh in meshes),
            "views",
        )
        found[f"render + PNG + ground truth, {name}"] = (
            lambda turn, settings=settings: sum(render_and_encode(mesh, turn, settings, 0.01) for mesh in meshes),
            "views",
        )
    return found


def measure(rounds: int, limit: int) -> dict[str, dict[str, Any]]:
    """Run every case once per round, after a round that warms up; return units per CPU second."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    found = cases(limit)
    rates: dict[str, list[float]] = {name: [] for name in found}
    for turn in range(rounds + 1):
        for name, (function, _) in found.items():
            start = time.process_time()
            done = function(turn)
            if turn:
                rates[name].append(done / (time.process_time() - start))
    return {
        name: {
            "unit": f"{found[name][1]} per CPU second",
            "median": round(float(np.median(values)), 2),
            "lowest": round(min(values), 2),
            "highest": round(max(values), 2),
        }
        for name, values in rates.items()
    }


def provenance() -> dict[str, str]:
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cpu": cpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "opencv": cv2.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--objects", type=int, default=20, help="of the demo shards, for decoding")
    parser.add_argument("--output", default="", help="JSON to write; none: nothing")
    options = parser.parse_args()
    results = measure(options.rounds, options.objects)
    about = provenance()
    ratios = {
        "smooth silhouettes: ours / per-pixel loop": results["smooth silhouette, ours"]["median"]
        / results["smooth silhouette, per-pixel loop"]["median"],
    }
    print(" · ".join(f"{name} {value}" for name, value in about.items()))
    for name, row in results.items():
        print(f"{name:46} {row['median']:10.1f}  ({row['lowest']:.1f} … {row['highest']:.1f})  {row['unit']}")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio:.0f}")
    if options.output != "none":
        path = Path(options.output or ROOT / "benchmarks" / "results" / f"shards-{about['date']}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        rounded = {name: round(ratio, 1) for name, ratio in ratios.items()}
        path.write_text(json.dumps({"about": about, "results": results, "ratios": rounded}, indent=1) + "\n")


if __name__ == "__main__":
    main()
