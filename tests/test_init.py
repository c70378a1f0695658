"""Starting from weights: `init=` of a whole run, from TensorFlow's checkpoint and from another run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy import SMALL_RUN, call, drwr

from drwr_dist import checkpoint
from drwr_dist.config import ModelConfig, TrainConfig
from drwr_dist.engine.initial_weights import initial_weights
from drwr_dist.errors import UsageError
from drwr_dist.model import build_model

STORED = Path(__file__).parent / "tf_checkpoint"
NETWORK = ("model.points=20", "model.channels=1", "model.hidden=8")


@pytest.fixture(scope="module")
def evaluated(toy_dataset: Path, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that took TensorFlow's weights and made no step."""
    storage = tmp_path_factory.mktemp("runs")
    done = drwr(
        "train", f"data={toy_dataset}", f"storage={storage}", "name=start", *SMALL_RUN, *NETWORK, "steps=0",
        f"init=tf_checkpoint:{STORED}", "evaluation.references=false", f"cluster.address={ray_address}",
        RAY_AUTH_MODE="disabled",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return storage / "start"


def test_no_step_evaluates_the_weights_as_they_are(evaluated: Path):
    state = checkpoint.load_newest(evaluated)
    assert state is not None and state.step == 0
    config = TrainConfig(model=ModelConfig(points=20, channels=1, hidden=8))
    expected = initial_weights(f"tf_checkpoint:{STORED}", config, 64)
    assert all(torch.equal(state.state["model"][name], value) for name, value in expected.items())
    assert (evaluated / "result.json").exists()


def test_a_run_can_start_from_a_run(evaluated: Path):
    config = TrainConfig(model=ModelConfig(points=20, channels=1, hidden=8))
    network = build_model(config.model, 64)
    network.load_state_dict(initial_weights(str(evaluated), config, 64))
    expected = initial_weights(f"tf_checkpoint:{STORED}", config, 64)
    assert all(torch.equal(network.state_dict()[name], value) for name, value in expected.items())
    other_points = ModelConfig(points=21, channels=1, hidden=8)
    with_scale = ModelConfig(points=20, channels=1, hidden=8, scale_head=True)
    for changed, key in ((other_points, "set model.points=20"), (with_scale, "model.scale_head=false")):
        with pytest.raises(UsageError, match=key):
            initial_weights(str(evaluated), TrainConfig(model=changed), 64)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["init=/nowhere/run"], ["init=/nowhere/run", "no run with a checkpoint"]),
        (["init=tf_checkpoint:/nowhere/model"], ["/nowhere/model", "PREFIX.index"]),
        ([f"init=tf_checkpoint:{STORED}"], ["encoder/Conv/weights", "model.channels=1"]),
        (["steps=0"], ["steps=0", "init"]),
    ],
)
def test_mistakes_are_found_before_any_worker_starts(
    toy_dataset: Path, tmp_path: Path, arguments: list[str], names: list[str]
):
    done = call("train", f"data={toy_dataset}", f"storage={tmp_path}", *SMALL_RUN, *arguments)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert all(name in done.stderr for name in names), done.stderr
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").glob("config.yaml"))


def test_init_may_not_change_when_a_run_goes_on(evaluated: Path, toy_dataset: Path):
    done = call(
        "train", f"data={toy_dataset}", f"storage={evaluated.parent}", "name=start", *SMALL_RUN, *NETWORK, "steps=2"
    )
    assert done.returncode == 2 and "init=None" in done.stderr and "overwrite=true" in done.stderr
