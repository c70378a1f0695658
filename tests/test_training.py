"""What a training asks of its configuration, of earlier runs and of the cluster, before any worker starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy import call, untrained_run

from drwr_dist import checkpoint, cluster_address
from drwr_dist.config import ClusterConfig, TrainConfig
from drwr_dist.engine.driver import gpus_left_idle
from drwr_dist.errors import UsageError
from drwr_dist.run import load_config, refuse_changes, save_config
from drwr_dist.validation import validate


@pytest.mark.parametrize("place", ["mine", "mine/checkpoints/step-00000001", "mine/../mine", "link"])
def test_a_run_that_would_be_removed_is_no_beginning(toy_dataset: Path, tmp_path: Path, place: str):
    run = untrained_run(tmp_path / "mine")
    (tmp_path / "link").symlink_to(run)
    settings = [f"data={toy_dataset}", f"storage={tmp_path}", "name=mine", "overwrite=true", f"init={tmp_path / place}"]
    done = call("train", *settings)
    assert done.returncode == 2 and "overwrite=true" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert checkpoint.names(str(run)) == ["step-00000001"]


def test_fewer_steps_than_are_trained_are_refused(toy_dataset: Path, tmp_path: Path):
    run = untrained_run(tmp_path / "mine")
    config, size = load_config(run)
    config.name, config.storage, config.data.path = "mine", str(tmp_path), str(toy_dataset)
    config.data.supervision_views = 3
    save_config(run, config, size)
    checkpoint.write(run, 7, checkpoint.load(str(run), "step-00000001").state, {})
    same = ["model.points=50", "model.channels=4", "model.hidden=16", "data.supervision_views=3"]
    done = call("train", f"data={toy_dataset}", f"storage={tmp_path}", "name=mine", "steps=5", *same)
    assert done.returncode == 2, done.stderr
    assert "steps=5:" in done.stderr and "trained for 7" in done.stderr and done.stderr.count("\n") == 1


def test_what_damage_costs_may_be_decided_when_a_run_goes_on(tmp_path: Path):
    run = untrained_run(tmp_path / "mine")
    config, _ = load_config(run)
    config.data.on_bad_sample, config.data.max_skip_fraction = "skip", 0.5
    refuse_changes(run, config)
    config.data.mirror = True
    with pytest.raises(UsageError, match=r"data\.mirror=True"):
        refuse_changes(run, config)


@pytest.mark.parametrize(
    ("workers", "wanted", "gpus", "told"),
    [(2, -1.0, 1, True), ([4, 8], -1.0, 3, True), (2, -1.0, 0, False), (2, -1.0, 2, False), ([1, 4], -1.0, 1, False),
     (2, 0.0, 1, False), (2, 1.0, 1, False)],
)  # fmt: skip
def test_gpus_that_are_too_few_are_not_passed_over_in_silence(
    workers: int | list[int], wanted: float, gpus: int, told: bool
):
    config = TrainConfig(workers=workers, cluster=ClusterConfig(gpus_per_worker=wanted))
    note = gpus_left_idle(config, gpus)
    assert (note is not None) == told
    assert note is None or f"workers={gpus}" in note


def test_two_workers_can_not_share_a_gpu():
    with pytest.raises(UsageError, match=r"cluster\.gpus_per_worker=0\.5: NCCL"):
        validate(TrainConfig(workers=2, cluster=ClusterConfig(gpus_per_worker=0.5)))
    validate(TrainConfig(workers=1, cluster=ClusterConfig(gpus_per_worker=0.5)))


@pytest.mark.parametrize("key", ["loss.theta", "optimizer.learning_rate", "optimizer.weight_decay"])
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_numbers_are_finite(key: str, value: str):
    done = call("train", "config=demo", f"{key}={value}")
    assert done.returncode == 2 and f"{key}=" in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_cluster_of_this_machine_is_found_where_ray_notes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
):
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    assert cluster_address.why_not("auto") == "Ray does not run on this host; start it, or give HOST:PORT"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    assert "no Ray cluster answers at 127.0.0.1:1" in str(cluster_address.why_not("auto"))
