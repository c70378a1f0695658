"""A small real dataset and real processes for the tests."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import trimesh

REPOSITORY = Path(__file__).parent.parent


def make_meshes(folder: Path, categories: dict[str, int]) -> None:
    """Write boxes with a leg (never symmetric, all different) as <folder>/<category>/<name>.ply."""
    for number, (category, count) in enumerate(categories.items()):
        random = np.random.default_rng(number)
        (folder / category).mkdir(parents=True)
        for index in range(count):
            size = random.uniform(0.2, 1.0, 3)
            box = trimesh.creation.box(size)
            leg = trimesh.creation.box(0.3 * size)
            leg.apply_translation(0.6 * size)
            trimesh.util.concatenate([box, leg]).export(folder / category / f"box{index:02d}.ply")


def drwr(verb: str, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m drwr_dist.VERB arguments …` to its end."""
    return subprocess.run(
        command(verb, *arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
    )


def call(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Do in this process what `drwr` does: seconds faster, for what starts no Ray and ends by itself."""
    from drwr_dist.cli import run_verb

    module, *action = verb.split()
    main = importlib.import_module(f"drwr_dist.{module}").main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.dict(os.environ):
        try:
            run_verb(main, [*action, *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
            return subprocess.CompletedProcess(command(verb, *arguments), code, out.getvalue(), err.getvalue())
    raise AssertionError("a verb ends with an exit code")


def command(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"drwr_dist.{verb.split()[0]}", *verb.split()[1:], *arguments]


def make_dataset(folder: Path, *settings: str, categories: dict[str, int] | None = None) -> Path:
    """Build a dataset with the `shards import` command; `settings` override its small defaults."""
    make_meshes(folder / "meshes", categories or {"brick": 12, "slab": 12})
    output = folder / "data"
    small = ["views=5", "image_size=64", "supersample=2", "shard_samples=4", "ground_truth_voxel=0.03", "workers=1"]
    done = drwr("shards import", "source=meshes", f"input={folder / 'meshes'}", f"output={output}", *small, *settings)
    assert done.returncode == 0, done.stderr
    return output


def untrained_run(folder: Path, points: int = 50, image_size: int = 64) -> Path:
    """Write a run with a checkpoint of step 1, as a training would have, without the training."""
    from drwr_dist import checkpoint
    from drwr_dist.config import ModelConfig, TrainConfig
    from drwr_dist.run import save_config, untrained_model

    config = TrainConfig(model=ModelConfig(points=points, channels=4, hidden=16))
    save_config(folder, config, image_size)
    checkpoint.write(folder, 1, {"model": untrained_model(config, image_size).state_dict()}, {})
    return folder


SMALL_RUN = (
    "model.points=64",
    "model.channels=4",
    "model.hidden=16",
    "loss.grid=32",
    "global_batch=4",
    "log_every=1",
    "cluster.timeout=60",
)


def rows(run: Path) -> list[dict[str, float]]:
    """Read metrics.jsonl strictly: every line must be whole."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
