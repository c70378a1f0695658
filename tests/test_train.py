"""Whole runs: real Ray, real workers, real kills. Each takes half a minute, most of it Ray's start."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from runs import start, train, wait_for_step
from scipy.spatial import cKDTree
from shard_tools import encoded, make_sample, write_samples
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy import SMALL_RUN, call, rows

from drwr_dist import checkpoint
from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import as_tensor
from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.sample import composite, split_members
from drwr_dist.data.stream import SampleTable
from drwr_dist.data.writer import EncodedSample, ShardLimits, write_dataset
from drwr_dist.engine.driver import run_lock, set_up_ray_train
from drwr_dist.engine.skips import limit_skips
from drwr_dist.errors import TrainingError
from drwr_dist.point_cloud import read_ply
from drwr_dist.run import load_run
from drwr_dist.scores import object_metrics, summarise

EXACT = ("steps=60", "checkpoint.every=5", "precision=float64", "evaluation.references=false")


def refuse(data: Path, storage: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call for a training that ends before any worker starts."""
    return call("train", f"data={data}", f"storage={storage}", *SMALL_RUN, *arguments)


VALIDATION = ("validation.every=4", "validation.views=2")


@pytest.fixture(scope="module")
def finished(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished run of 2 workers, and what it printed."""
    storage = tmp_path_factory.mktemp("runs")
    done = train(toy_dataset, storage, "name=whole", "workers=2", "steps=8", "checkpoint.every=3", *VALIDATION)
    assert done.returncode == 0, done.stderr
    return storage / "whole", done.stdout


def test_a_run_leaves_what_the_design_promises(finished: tuple[Path, str]):
    run, printed = finished
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["workers"] == 2 and config["model"]["points"] == 64
    assert [row["step"] for row in rows(run)] == list(range(1, 9))
    assert (run / "gallery.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    names = ("tensorboard --logdir", "gallery.png", "report.html", "predictions")
    for words in ("brick", "slab", "untrained", "mean shape", *names):
        assert words in printed
    assert "samples/s" in printed and "ETA" in printed
    assert "loss default on a grid of 32: 3 × unary + 0.02 × repulsion + 6 × coverage + 0.05 × crowding" in printed
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000008"]


def test_validation_scores_the_val_split_and_marks_checkpoints(finished: tuple[Path, str], toy_dataset: Path):
    """The row at the last step is what evaluating that checkpoint on the split says; TensorBoard has it too."""
    run = finished[0]
    lines = [json.loads(line) for line in (run / "validation.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 8]
    loaded = load_run(run, "8")
    table = SampleTable.select(load_index(str(toy_dataset)), "val")
    objects = {}
    for number, key in enumerate(table.keys):
        sample = table.read(number, with_points=True)
        images = composite(sample.images[:2], sample.masks[:2], 1.0)
        with torch.no_grad():
            points = loaded.model(torch.stack([as_tensor(image) for image in images]))
        objects[key] = object_metrics(points, sample)
    means = summarise(objects, 2)["overall"]
    for name in ("objects", "chamfer", "f_score_1", "f_score_2", "silhouette_iou"):
        assert lines[-1][name] == pytest.approx(means[name], rel=1e-6), name
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scores = events.Scalars("validation/chamfer")
    assert [event.step for event in scores] == [4, 8]
    assert scores[-1].value == pytest.approx(lines[-1]["chamfer"], rel=1e-5)
    meta = json.loads((run / "checkpoints" / "step-00000008" / "meta.json").read_text())
    assert meta["validation"]["chamfer"] == lines[-1]["chamfer"]
    assert checkpoint.choose(run, "best", "chamfer") == "step-00000008", finished[1]


def test_tensorboard_has_the_scalars(finished: tuple[Path, str]):
    events = EventAccumulator(str(finished[0] / "tensorboard"))
    events.Reload()
    losses = events.Scalars("loss/total")
    assert [event.step for event in losses] == list(range(1, 9))
    assert losses[-1].value == pytest.approx(rows(finished[0])[-1]["loss"], rel=1e-5)
    assert {"loss/unary", "loss/repulsion", "schedule/learning_rate"} <= set(events.Tags()["scalars"])


def test_results_agree_with_the_point_clouds_on_disk(finished: tuple[Path, str], toy_dataset: Path):
    result = json.loads((finished[0] / "result.json").read_text())
    block = result["splits"]["test"]
    table = SampleTable.select(load_index(str(toy_dataset)), "test")
    assert result["step"] == 8 and set(block["objects"]) == set(table.keys)
    for number, key in enumerate(table.keys):
        truth = table.read(number, with_points=True).points
        sums = []
        for view in range(5):
            cloud = read_ply(finished[0] / "predictions" / f"{key}.{view:02d}.ply")
            assert cloud.shape == (64, 3)
            sums.append(100 * (cKDTree(truth).query(cloud)[0].mean() + cKDTree(cloud).query(truth)[0].mean()))
        assert block["objects"][key]["chamfer"] == pytest.approx(np.mean(sums), rel=1e-4)
        assert block["objects"][key]["chamfer_best_view"] == pytest.approx(min(sums), rel=1e-4)
    slabs = [row["chamfer"] for key, row in block["objects"].items() if key.startswith("slab/")]
    assert block["categories"]["slab"]["chamfer"] == pytest.approx(np.mean(slabs))
    assert {"untrained", "mean_shape"} == set(block["references"])
    assert set(result["definitions"]) <= {name for name in block["overall"]}


def test_a_finished_run_says_that_it_is_complete(finished: tuple[Path, str], toy_dataset: Path):
    before = (finished[0] / "metrics.jsonl").read_bytes()
    again = train(toy_dataset, finished[0].parent, "name=whole", "workers=2", "steps=8", *VALIDATION, timeout=60)
    assert again.returncode == 0 and "complete" in again.stdout and "brick" in again.stdout
    assert (finished[0] / "metrics.jsonl").read_bytes() == before


def test_another_learning_task_under_the_same_name_is_refused(finished: tuple[Path, str], toy_dataset: Path):
    other = refuse(toy_dataset, finished[0].parent, "name=whole", "steps=8", "seed=1")
    assert other.returncode == 2 and "seed=1" in other.stderr and "overwrite=true" in other.stderr


def test_evaluate_another_split_adds_to_the_results(finished: tuple[Path, str], toy_dataset: Path, tmp_path: Path):
    run = tmp_path / "copy"
    shutil.copytree(finished[0], run)
    done = call("evaluate", f"run={run}", f"data={toy_dataset}", "split=val")
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert set(result["splits"]) == {"test", "val"}
    assert "val" in (run / "result.txt").read_text()
    assert call("evaluate", f"run={tmp_path / 'nothing'}").returncode == 2


def test_training_never_reads_ground_truth(
    toy_dataset: Path, tmp_path: Path, finished: tuple[Path, str], joins_ray: str
):
    """A dataset whose ground truth is destroyed (checksums made anew) trains to the very same losses."""
    index = load_index(str(toy_dataset))
    spoilt = []
    for number, shard in enumerate(index.shards):
        for position, key in enumerate(shard.keys):
            members = split_members(read_sample(index, number, position), key=key)
            members["points.npy"] = b"not an array"
            spoilt.append(EncodedSample(key, shard.split, members, "test", "CC0-1.0"))
    write_dataset(
        tmp_path / "data", spoilt, name="toy", image_size=64, views=5, focal_length=1.875, limits=ShardLimits(samples=4)
    )
    done = train(
        tmp_path / "data", tmp_path, "name=blind", "workers=2", "steps=8", "checkpoint.every=3", "evaluation.split=",
        joins_ray,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [row["loss"] for row in rows(tmp_path / "blind")] == [row["loss"] for row in rows(finished[0])]


@pytest.fixture(scope="module")
def undisturbed(toy_dataset: Path, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 2 workers in float64, with whose curve others are compared."""
    storage = tmp_path_factory.mktemp("runs")
    settings = ("name=undisturbed", "workers=2", "validation.every=30", *EXACT, f"cluster.address={ray_address}")
    done = train(toy_dataset, storage, *settings, RAY_AUTH_MODE="disabled")
    assert done.returncode == 0, done.stderr
    return storage / "undisturbed"


def test_the_number_of_workers_does_not_change_the_curve(
    toy_dataset: Path, tmp_path: Path, undisturbed: Path, joins_ray: str
):
    done = train(toy_dataset, tmp_path, "name=alone", "workers=1", "validation.every=30", *EXACT, joins_ray)
    assert done.returncode == 0, done.stderr
    curves = [[row["loss"] for row in rows(run)] for run in (tmp_path / "alone", undisturbed)]
    assert curves[0] == pytest.approx(curves[1], rel=1e-9) and curves[0][0] != curves[0][-1]
    texts = [(run / "validation.jsonl").read_text() for run in (tmp_path / "alone", undisturbed)]
    scores = [[json.loads(line)["chamfer"] for line in text.splitlines()] for text in texts]
    assert len(scores[0]) == 2 and scores[0] == pytest.approx(scores[1], rel=1e-6)


def test_killed_and_started_again_it_ends_with_the_same_numbers(
    toy_dataset: Path, tmp_path: Path, undisturbed: Path, joins_ray: str
):
    """SIGKILL of the driver in the middle of an epoch; the same command continues, with another number of workers."""
    killed = tmp_path / "killed"
    process = start(toy_dataset, tmp_path, "name=killed", "workers=2", *EXACT)
    wait_for_step(killed, 10, process)
    process.kill()
    process.communicate()
    done = train(toy_dataset, tmp_path, "name=killed", "workers=1", *EXACT, joins_ray)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stdout
    one, other = rows(killed), rows(undisturbed)
    assert [row["step"] for row in one] == list(range(1, 61))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-8)
    results = [json.loads((run / "result.json").read_text()) for run in (killed, undisturbed)]
    scores = [result["splits"]["test"]["overall"]["chamfer"] for result in results]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_a_killed_worker_is_replaced_and_nothing_changes(toy_dataset: Path, tmp_path: Path, undisturbed: Path):
    process = start(toy_dataset, tmp_path, "name=worker", "workers=2", *EXACT)
    wait_for_step(tmp_path / "worker", 5, process)
    victim = ray_worker_of(process.pid)
    os.kill(victim, signal.SIGKILL)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    assert "resuming after step" in out
    one = rows(tmp_path / "worker")
    assert [row["step"] for row in one] == list(range(1, 61))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in rows(undisturbed)], rel=1e-9)


def ray_worker_of(driver: int) -> int:
    """Return the process of a training worker among the descendants of a driver."""
    table = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    entries = [line.split(None, 2) for line in table.splitlines()[1:]]
    family = {driver}
    for _ in range(6):
        family |= {int(pid) for pid, parent, _ in entries if int(parent) in family}
    workers = [int(pid) for pid, _, args in entries if int(pid) in family and "RayTrainWorker" in args]
    assert workers, table
    return workers[0]


def test_ctrl_c_leaves_a_checkpoint_to_continue_from(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    """SIGTERM does so too: test_communication.py, test_faults.py and test_cluster_faults.py end runs with it."""
    settings = ("name=stopped", "workers=2", "checkpoint.every=1000", "evaluation.split=")
    process = start(toy_dataset, tmp_path, *settings, "steps=100000")
    deadline = time.monotonic() + 120
    while not (tmp_path / "stopped" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, (out, err)
    assert "interrupted after step" in out and "Traceback" not in err
    step = int(out.split("interrupted after step ")[1].split(";")[0])
    assert (tmp_path / "stopped" / "checkpoints" / f"step-{step:08d}").exists()
    again = train(toy_dataset, tmp_path, *settings, f"steps={step + 3}", joins_ray)
    assert again.returncode == 0 and f"resuming after step {step}" in again.stdout
    assert [row["step"] for row in rows(tmp_path / "stopped")] == list(range(1, step + 4))


def test_a_run_that_was_refused_at_its_start_may_become_another(toy_dataset: Path, tmp_path: Path):
    for seed in (0, 1):
        done = refuse(toy_dataset, tmp_path, "name=refused", f"seed={seed}", "cluster.address=127.0.0.1:1")
        assert done.returncode == 2 and "no Ray cluster" in done.stderr
    assert yaml.safe_load((tmp_path / "refused" / "config.yaml").read_text())["seed"] == 1


@pytest.mark.parametrize(("workers", "seconds"), [(2, 0.25), ([8, 100], 1.0), (4096, 2.0)])
def test_the_controller_looks_less_often_at_more_workers(workers: int | list[int], seconds: float):
    name = "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"
    with mock.patch.dict(os.environ):
        os.environ.pop(name, None)
        set_up_ray_train(TrainConfig(workers=workers))
        assert float(os.environ[name]) == seconds
        os.environ[name] = "5"
        set_up_ray_train(TrainConfig(workers=workers))
        assert os.environ[name] == "5"


def test_validation_without_a_val_split_is_refused(tmp_path: Path):
    index = write_samples(tmp_path / "data", [encoded(make_sample(f"ball/{i}")) for i in range(4)])
    done = refuse(Path(index.root), tmp_path, "steps=2", "validation.every=2", "data.supervision_views=3")
    assert done.returncode == 2 and "validation.every=2" in done.stderr and "val split" in done.stderr


def test_an_evaluation_of_a_split_without_objects_is_refused(tmp_path: Path):
    index = write_samples(tmp_path / "data", [encoded(make_sample(f"ball/{i}")) for i in range(4)])
    done = refuse(Path(index.root), tmp_path, "steps=2", "data.supervision_views=3")
    assert done.returncode == 2 and "evaluation.split=test: " in done.stderr
    assert "set evaluation.split= for no evaluation" in done.stderr


def test_two_drivers_of_one_run_are_refused(toy_dataset: Path, tmp_path: Path):
    with run_lock(tmp_path / "busy"):
        done = refuse(toy_dataset, tmp_path, "name=busy", "steps=2")
    assert done.returncode == 2 and "busy" in done.stderr


def cut_shard(data: Path, copy: Path) -> Path:
    shutil.copytree(data, copy)
    shard = sorted(copy.glob("train-*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    return shard


def test_a_truncated_shard_ends_all_workers_with_one_line(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    shard = cut_shard(toy_dataset, tmp_path / "data")
    done = train(tmp_path / "data", tmp_path, "name=cut", "workers=2", "steps=50", joins_ray, timeout=120)
    assert done.returncode == 1
    assert shard.name in done.stderr and "truncated" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_skips_are_bounded_by_a_share_of_an_epoch_then_of_all_that_was_seen():
    config = TrainConfig(global_batch=4, steps=100)
    config.data.max_skip_fraction = 0.25
    limit_skips(Counter({"a.tar": 2, "b.tar": 3}), config, samples=20, step=0)
    with pytest.raises(TrainingError, match=r"step 4: 6 samples .* data\.max_skip_fraction=0\.25"):
        limit_skips(Counter({"a.tar": 2, "b.tar": 4}), config, samples=20, step=4)
    limit_skips(Counter({"a.tar": 2, "b.tar": 4}), config, samples=20, step=5)


def test_bad_samples_can_be_skipped(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    cut_shard(toy_dataset, tmp_path / "data")
    settings = ("workers=2", "steps=8", "data.on_bad_sample=skip", "evaluation.split=", joins_ray)
    few = train(tmp_path / "data", tmp_path, "name=few", *settings, "data.max_skip_fraction=0.5")
    assert few.returncode == 0, few.stderr
    assert "skipped" in few.stdout and rows(tmp_path / "few")[-1]["skipped"] > 0


@pytest.mark.slow
def test_too_many_bad_samples_end_all_workers(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    cut_shard(toy_dataset, tmp_path / "data")
    settings = ("workers=2", "steps=8", "data.on_bad_sample=skip", "evaluation.split=", joins_ray)
    many = train(tmp_path / "data", tmp_path, "name=many", *settings, "data.max_skip_fraction=0.01")
    assert many.returncode == 1 and "data.max_skip_fraction" in many.stderr


def test_a_loss_that_is_not_finite_names_step_and_samples(toy_dataset: Path, tmp_path: Path, joins_ray: str):
    done = train(
        toy_dataset, tmp_path, "name=nan", "workers=2", "steps=50", "optimizer.learning_rate=1e38",
        "optimizer.gradient_clip=0", "optimizer.warmup_steps=0", joins_ray, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "not finite" in done.stderr and "step" in done.stderr and "Traceback" not in done.stderr
    assert "brick/" in done.stderr or "slab/" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        (["data=/nowhere"], 1, ["data=/nowhere", "no such folder"]),
        (["workers=5"], 2, ["workers=5", "global_batch=4"]),
        (["data.supervision_views=9"], 2, ["data.supervision_views=9", "5 views"]),
        (["loss.grid=48"], 2, ["loss.grid=48", "64"]),
        (["data.categories=[lamp]"], 2, ["lamp", "brick"]),
        (["evaluation.split=exam"], 2, ["evaluation.split=exam", "train, val, test"]),
        (["storage=http://127.0.0.1/runs"], 2, ["storage=http", "only be read"]),
        (["validation.every=2", "data.split=val"], 2, ["validation.every", "data.split=val"]),
        (["evaluation.checkpoint=best"], 2, ["evaluation.checkpoint=best", "validation.every"]),
        (["cluster.address=127.0.0.1:1"], 2, ["cluster.address=127.0.0.1:1", "no Ray cluster"]),
        (["storage=/dev/null"], 2, ["storage=/dev/null"]),
    ],
)
def test_mistakes_are_found_before_any_worker_starts(
    toy_dataset: Path, tmp_path: Path, arguments: list[str], code: int, names: list[str]
):
    begin = time.monotonic()
    done = refuse(toy_dataset, tmp_path, "steps=2", *arguments)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.strip().splitlines()) == 1
    for name in names:
        assert name in done.stderr
    assert "starting workers" not in done.stdout and time.monotonic() - begin < 30
