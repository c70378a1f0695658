"""`sbatch launch/slurm.sh` under a real Slurm on two hosts: trains, is told to stop, goes on. `make test-cluster`."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import lab
import pytest
import slurm_lab
from cluster import PATIENCE, steps, wait
from lab import SHARED, VENV, Lab
from mishaps import listening
from slurm_lab import Slurm
from toy import SMALL_RUN, make_dataset

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * PATIENCE),
    pytest.mark.skipif(lab.missing() is not None, reason=str(lab.missing())),
    pytest.mark.skipif(slurm_lab.missing() is not None, reason=str(slurm_lab.missing())),
]

RUNS = SHARED / "runs"
SETTINGS = {"DRWR_VENV": str(VENV), "RAY_worker_niceness": "0"}  # see cluster.py


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    folder = tmp_path_factory.mktemp("slurm")
    dataset = make_dataset(folder, categories={"brick": 9, "slab": 9})
    with Lab(folder, workers=1) as hosts:
        shutil.copytree(dataset, hosts.head.path(SHARED / "data"))
        slurm = Slurm(hosts)
        slurm.start()
        yield slurm


def small_run(name: str) -> list[str]:
    return [f"data={SHARED / 'data'}", f"storage={RUNS}", f"name={name}", "workers=2", *SMALL_RUN]


def run_folder(slurm: Slurm, name: str) -> Path:
    return slurm.controller.path(RUNS / name)


def test_sbatch_trains_on_two_nodes(slurm: Slurm) -> None:
    job = slurm.submit(*small_run("plain"), "steps=20", **SETTINGS)
    assert slurm.wait(job) == "COMPLETED 0:0", slurm.output(job)
    assert steps(run_folder(slurm, "plain")) == list(range(1, 21))
    assert (run_folder(slurm, "plain") / "result.json").exists()


def test_a_mistake_ends_the_job_with_its_exit_code(slurm: Slurm) -> None:
    job = slurm.submit(*small_run("wrong"), "stepz=20", **SETTINGS)
    assert slurm.wait(job) == "FAILED 2:0", slurm.output(job)
    assert "stepz" in slurm.output(job)


def test_a_port_that_is_taken_ends_the_job_with_one_line(slurm: Slurm) -> None:
    with listening(slurm.controller, slurm.controller.ip, 8265):
        job = slurm.submit(*small_run("busy"), "steps=20", **SETTINGS)
        assert slurm.wait(job) == "FAILED 1:0", slurm.output(job)
    assert slurm.output(job).startswith(f"port 8265 of {slurm.controller.name} is taken by another program")


def test_term_saves_a_checkpoint_and_the_same_sbatch_goes_on(slurm: Slurm) -> None:
    """What Slurm sends before the time limit (`--signal=B:TERM@120`), sent by hand."""
    line = [*small_run("long"), "checkpoint.every=100000", "evaluation.split="]
    job = slurm.submit(*line, "steps=100000", **SETTINGS)
    wait(lambda: len(steps(run_folder(slurm, "long"))) > 30, lambda: f"steps of the job; {slurm.output(job)}")
    slurm.run(f"scancel --batch --signal=TERM {job}")
    assert slurm.wait(job) == "FAILED 130:0", slurm.output(job)
    (saved,) = run_folder(slurm, "long").glob("checkpoints/step-*")
    step = int(saved.name.removeprefix("step-"))
    job = slurm.submit(*line, f"steps={step + 10}", **SETTINGS)
    assert slurm.wait(job) == "COMPLETED 0:0", slurm.output(job)
    assert f"resuming after step {step}" in slurm.output(job)
    assert steps(run_folder(slurm, "long")) == list(range(1, step + 11))
