"""Results in the released formats: pred/…_pc.mat and the scores of result.txt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from rich.console import Console
from shard_tools import make_balls

from drwr_dist.config import ModelConfig, TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable
from drwr_dist.evaluate import EvaluateOptions, evaluate_run
from drwr_dist.model import build_model
from drwr_dist.point_cloud import read_ply
from drwr_dist.run import TrainedRun

VIEWS = 3


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    """A run of an untrained network, evaluated on the balls."""
    data = make_balls(tmp_path / "data")
    config = TrainConfig(model=ModelConfig(points=40, channels=2, hidden=8, decoder_std=0.5))
    config.data.path = data.root
    run = TrainedRun(tmp_path / "run", config, 32, 12, build_model(config.model, 32).eval())
    run.path.mkdir()
    evaluate_run(run, EvaluateOptions(split="test", mat=True, references=False), Console(quiet=True))
    return run.path


def test_mat_files_hold_the_predictions(evaluated: Path):
    files = sorted((evaluated / "pred").rglob("*"))
    assert [str(f.relative_to(evaluated)) for f in files if f.is_file()] == [
        f"pred/ball/test{number}_pc.mat" for number in range(3)
    ]
    for number in range(3):
        points = np.squeeze(scipy.io.loadmat(evaluated / f"pred/ball/test{number}_pc.mat")["points"])
        assert points.shape == (VIEWS, 40, 3)
        for view in range(VIEWS):
            assert np.array_equal(points[view], read_ply(evaluated / f"predictions/ball/test{number}.{view:02d}.ply"))


def test_scores_as_the_released_code_computes_and_writes_them(evaluated: Path):
    """Its evaluation, in NumPy: distances both ways, the least sum over views, the mean over models, times 100."""
    scores = []
    for number in range(3):
        clouds = scipy.io.loadmat(evaluated / f"pred/ball/test{number}_pc.mat")["points"].astype(np.float64)
        truth = ground_truth(evaluated, f"ball/test{number}")
        sums = []
        for cloud in clouds:
            distances = np.linalg.norm(cloud[:, None] - truth[None], axis=-1)
            sums.append(distances.min(1).mean() + distances.min(0).mean())
        scores.append((np.mean(sums), np.min(sums)))
    mean, least = 100 * np.mean(scores, axis=0)
    overall = json.loads((evaluated / "result.json").read_text())["splits"]["test"]["overall"]
    assert overall["chamfer"] == pytest.approx(mean, rel=1e-5)
    assert overall["chamfer_best_view"] == pytest.approx(least, rel=1e-5)
    parts = overall["chamfer_predicted_to_target"] + overall["chamfer_target_to_predicted"]
    assert parts == pytest.approx(mean, rel=1e-5)
    text = (evaluated / "result.txt").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("test ball 12: ")]
    assert float(line.split(": ")[1]) == pytest.approx(least, rel=1e-5)
    assert "chamfer_best_view: " in text and "what DPC reports" in text


def ground_truth(run: Path, key: str) -> np.ndarray:
    table = SampleTable.select(load_index(str(run.parent / "data")), "test")
    points = table.read(table.keys.index(key), with_points=True).points
    assert points is not None
    return points.astype(np.float64)


def test_without_the_option_there_are_none(tmp_path: Path):
    data = make_balls(tmp_path / "data")
    config = TrainConfig(model=ModelConfig(points=9, channels=1, hidden=4))
    config.data.path = data.root
    torch.manual_seed(0)
    run = TrainedRun(tmp_path / "run", config, 32, 1, build_model(config.model, 32).eval())
    run.path.mkdir()
    evaluate_run(run, EvaluateOptions(split="val", predictions=False, references=False), Console(quiet=True))
    assert sorted(path.name for path in run.path.iterdir()) == ["report.html", "result.json", "result.txt"]
