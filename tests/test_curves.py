"""The loss curve is that of the configuration: not of the number of workers, nor of what struck them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from runs import start, train, wait_for
from toy import rows

from drwr_dist.monitor import read_rows

pytestmark = pytest.mark.slow

# An epoch has 5 steps, so that nearly every checkpoint lies within one; its last step leaves two of four ranks empty.
LONG = ("steps=200", "checkpoint.every=7", "precision=float64", "evaluation.split=", "monitor.pictures_every=0")
SHORT = ("steps=20", "precision=float32", "evaluation.split=", "monitor.pictures_every=0")


def losses(run: Path) -> list[float]:
    history = rows(run)
    assert [row["step"] for row in history] == list(range(1, len(history) + 1))
    return [row["loss"] for row in history]


def curve(data: Path, storage: Path, workers: int, *settings: str) -> list[float]:
    done = train(data, storage, f"name=workers{workers}", f"workers={workers}", *settings, timeout=600)
    assert done.returncode == 0, done.stderr
    return losses(storage / f"workers{workers}")


@pytest.fixture(scope="module")
def undisturbed(toy_dataset: Path, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    storage = tmp_path_factory.mktemp("undisturbed")
    settings = ("name=alone", "workers=1", *LONG, f"cluster.address={ray_address}")
    done = train(toy_dataset, storage, *settings, RAY_AUTH_MODE="disabled", timeout=600)
    assert done.returncode == 0, done.stderr
    found = losses(storage / "alone")
    assert len(found) == 200 and found[-1] < 0.5 * found[0]
    return found


def test_200_steps_in_float64_do_not_depend_on_the_workers(
    toy_dataset: Path, tmp_path: Path, undisturbed: list[float], joins_ray: str
):
    assert curve(toy_dataset, tmp_path, 4, *LONG, joins_ray) == pytest.approx(undisturbed, rel=1e-6)


def test_20_steps_in_float32_do_not_depend_on_the_workers(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    one, four = (curve(toy_dataset, tmp_path, workers, *SHORT, joins_ray) for workers in (1, 4))
    assert four == pytest.approx(one, rel=1e-4)


def test_killed_at_random_steps_and_resumed_with_other_workers_it_goes_on(
    toy_dataset: Path, tmp_path: Path, undisturbed: list[float]
):
    run, numbers = tmp_path / "killed", random.Random(4)
    for workers, kill in ((4, numbers.randint(20, 60)), (1, numbers.randint(80, 150))):
        process = start(toy_dataset, tmp_path, "name=killed", f"workers={workers}", *LONG)
        wait_for(lambda kill=kill: len(read_rows(run / "metrics.jsonl")) >= kill, process, timeout=300)
        process.kill()
        process.communicate()
    done = train(toy_dataset, tmp_path, "name=killed", "workers=2", *LONG, timeout=600)
    assert done.returncode == 0 and "resuming after step" in done.stdout, done.stderr
    assert losses(run) == pytest.approx(undisturbed, rel=1e-6)
