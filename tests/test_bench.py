"""`python -m drwr_dist.bench`: real steps on real processes, and advice that follows from the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy import SMALL_RUN, call, drwr

from drwr_dist.bench import BenchConfig, advice
from drwr_dist.engine.step_times import PHASES


def test_two_workers_are_timed(toy_dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    settings = [item for item in SMALL_RUN if not item.startswith("log_every")]
    done = drwr("bench", f"data={toy_dataset}", "workers=2", "bench_steps=4", f"bench_output={output}", *settings)
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text())
    assert list(content["steps"]["seconds"]) == list(PHASES)
    assert all(content["steps"]["seconds"][phase] > 0 for phase in ("data wait", "forward", "loss", "optimizer"))
    assert content["loader"]["from the cache"] > content["loader"]["first read"] > 0
    assert content["steps"]["gradient"] > 4 * 64 * 3
    for phase in PHASES:
        assert phase in done.stdout


def test_mistakes_are_one_line(toy_dataset: Path) -> None:
    done = call("bench", f"data={toy_dataset}", "bench_steps=1")
    assert done.returncode == 2 and "bench_steps=1" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("phase", "key"),
    [("data wait", "loader.workers"), ("all-reduce", ("communication.", "global_batch")), ("loss", "model.points")],
)
def test_advice_names_the_key_of_the_phase_that_stands_out(phase: str, key: str | tuple[str, ...]) -> None:
    config = BenchConfig(workers=1024, global_batch=1024)
    config.loader.workers = "0"
    seconds = dict.fromkeys(PHASES, 0.001) | {phase: 0.1}
    loader = {"first read": 1000.0, "from the cache": 9000.0, "bytes of all objects": 1e6}
    lines = advice(config, loader, {"seconds": seconds, "device": "cpu"})
    assert all(line.startswith(key) for line in lines) and len(lines) == (3 if phase == "all-reduce" else 1)
    assert not advice(
        config, loader, {"seconds": {"forward": 0.1, "data wait": 0.001, "all-reduce": 0, "loss": 0.1}, "device": "cpu"}
    )
