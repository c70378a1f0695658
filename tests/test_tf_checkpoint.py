"""Checkpoints of TensorFlow: one that it wrote is committed; a slow test makes the released size with a fresh one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drwr_dist.config import ModelConfig, TrainConfig
from drwr_dist.engine.initial_weights import initial_weights
from drwr_dist.errors import DataError, DrwrError, UsageError
from drwr_dist.model import build_model
from drwr_dist.tf_checkpoint import open_checkpoint

STORED = Path(__file__).parent / "tf_checkpoint"  # written by tensorflow_reference.py with TensorFlow 2.21
SMALL = {"points": 20, "channels": 1, "hidden": 8, "scale_head": True}
SIDE = 64


def config(**model: object) -> TrainConfig:
    return TrainConfig(model=ModelConfig(**{**SMALL, **model}))  # type: ignore[arg-type]


def compare_outputs(folder: Path, settings: TrainConfig, side: int) -> None:
    """Load a checkpoint and compare the network's outputs with those that TensorFlow computed: ≤ 1e-5."""
    network = build_model(settings.model, side)
    network.load_state_dict(initial_weights(f"tf_checkpoint:{folder}", settings, side))
    with np.load(folder / "example.npz") as example:
        images = torch.from_numpy(example["images"].transpose(0, 3, 1, 2).astype(np.float32) / 255)
        points, scale = torch.from_numpy(example["points"]), torch.from_numpy(example["scale"])
    with torch.no_grad():
        prediction = network.predict(images)
    assert points.std() > 0.05 and (points[0] - points[1]).abs().max() > 0.01, "an example that could tell"
    assert (prediction.points - points).abs().max() <= 1e-5
    assert prediction.scale is not None and (prediction.scale - scale).abs().max() <= 1e-5


def test_the_stored_checkpoint_gives_tensorflows_outputs():
    compare_outputs(STORED, config(), SIDE)


@pytest.mark.parametrize("path", [STORED, STORED / "model-7", STORED / "model-7.index"])
def test_it_can_be_named_in_three_ways(path: Path):
    variables = open_checkpoint(str(path)).variables
    assert variables["encoder/Conv/weights"].shape == (5, 5, 3, 1)
    assert variables["encoder/Conv/weights/Adam_1"].shape == (5, 5, 3, 1)
    assert open_checkpoint(str(path)).read("global_step") == 1


def test_a_checkpoint_file_that_was_moved_names_its_neighbour(tmp_path: Path):
    shutil.copytree(STORED, tmp_path / "moved")
    (tmp_path / "moved" / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/model-7"\n')
    assert open_checkpoint(str(tmp_path / "moved")).read("global_step") == 1


@pytest.mark.parametrize(
    ("model", "side", "names"),
    [
        ({"points": 30}, 64, ["decoder/fully_connected/weights", "60 outputs", "set model.points=20"]),
        ({"hidden": 9}, 64, ["encoder/fully_connected/weights", "set model.hidden=8"]),
        ({"channels": 2}, 64, ["encoder/Conv/weights", "3 inputs and 1 outputs of 5 × 5", "set model.channels=1"]),
        ({}, 128, ["encoder/fully_connected/weights", "images of 64 pixels", "image_size=64"]),
    ],
)
def test_another_network_is_refused_with_the_key_to_change(model: dict[str, object], side: int, names: list[str]):
    with pytest.raises(UsageError) as error:
        initial_weights(f"tf_checkpoint:{STORED}", config(**model), side)
    assert all(name in str(error.value) for name in names), str(error.value)


def test_the_scale_of_dpcs_own_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the heads z and b, slim counted the scale as the decoder's second layer."""
    original = open_checkpoint(str(STORED))

    def as_dpc(path: str) -> object:
        found = open_checkpoint(path)
        for kind in ("weights", "biases"):
            name = f"decoder/fully_connected_1/{kind}"
            found.variables[name] = found.variables.pop(f"decoder/fully_connected_3/{kind}")
        return found

    monkeypatch.setattr("drwr_dist.engine.initial_weights.open_checkpoint", as_dpc)
    state = initial_weights(f"tf_checkpoint:{STORED}", config(), SIDE)
    expected = original.read("decoder/fully_connected_3/weights").T
    assert np.array_equal(state["decoder.fully_connected_3.weight"].numpy(), expected)


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch):
    def without(path: str, name: str) -> object:
        found = open_checkpoint(path)
        del found.variables[name]
        return found

    for name, remedy in (
        ("encoder/Conv_4/biases", "architecture"),
        ("decoder/fully_connected_3/weights", "scale_head"),
    ):
        monkeypatch.setattr(
            "drwr_dist.engine.initial_weights.open_checkpoint", lambda path, name=name: without(path, name)
        )
        with pytest.raises(UsageError, match=f"no variable {name}.*{remedy}"):
            initial_weights(f"tf_checkpoint:{STORED}", config(), SIDE)
    with pytest.raises(DataError, match="no variable nothing"):
        open_checkpoint(str(STORED)).read("nothing")


def test_nothing_there():
    with pytest.raises(UsageError, match=r"init=tf_checkpoint:/nowhere/model: no checkpoint there"):
        open_checkpoint("/nowhere/model")


class TestDamage:
    """Whatever byte is wrong, the answer is one clear line."""

    @pytest.fixture
    def copy(self, tmp_path: Path) -> Path:
        return Path(shutil.copytree(STORED, tmp_path / "copy"))

    def test_data_cut_short(self, copy: Path):
        data = copy / "model-7.data-00000-of-00001"
        data.write_bytes(data.read_bytes()[:-1000])
        with pytest.raises(DataError, match=r"model-7.data-00000-of-00001: .*truncated"):
            initial_weights(f"tf_checkpoint:{copy}", config(), SIDE)

    def test_data_with_a_flipped_bit(self, copy: Path):
        data = copy / "model-7.data-00000-of-00001"
        content = bytearray(data.read_bytes())
        variable = open_checkpoint(str(copy)).variables["encoder/Conv_8/weights"]
        content[variable.offset + 5] ^= 1
        data.write_bytes(content)
        with pytest.raises(DataError, match=r"encoder/Conv_8/weights: damaged: .*checksum"):
            initial_weights(f"tf_checkpoint:{copy}", config(), SIDE)

    def test_data_missing(self, copy: Path):
        (copy / "model-7.data-00000-of-00001").unlink()
        with pytest.raises(DataError, match="belong together"):
            initial_weights(f"tf_checkpoint:{copy}", config(), SIDE)

    def test_numbers_that_are_not_finite(self, copy: Path, monkeypatch: pytest.MonkeyPatch):
        data = copy / "model-7.data-00000-of-00001"
        content = bytearray(data.read_bytes())
        found = open_checkpoint(str(copy))
        variable = found.variables["encoder/Conv/biases"]
        content[variable.offset : variable.offset + 4] = np.float32(np.nan).tobytes()
        data.write_bytes(content)
        monkeypatch.setattr(type(found), "read", lambda self, name: read_unchecked(self, name))
        with pytest.raises(DataError, match="encoder/Conv/biases holds numbers that are not finite"):
            initial_weights(f"tf_checkpoint:{copy}", config(), SIDE)

    @given(place=st.integers(0, 3364), value=st.integers(0, 255))
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_byte_of_the_index(self, copy: Path, place: int, value: int):
        content = bytearray((STORED / "model-7.index").read_bytes())
        changed = content[place] != value
        content[place] = value
        (copy / "model-7.index").write_bytes(content)
        try:
            found = open_checkpoint(str(copy)).variables
        except DrwrError as error:
            assert changed and "model-7.index" in str(error)
        else:  # only the footer's padding and the block of metadata, which nothing reads, may change unseen
            assert found == open_checkpoint(str(STORED)).variables

    @given(data=st.binary(max_size=300), end=st.booleans())
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_anything_else_as_an_index(self, copy: Path, data: bytes, end: bool):
        (copy / "model-7.index").write_bytes(data + (STORED / "model-7.index").read_bytes()[-8:] * end)
        with pytest.raises(DataError):
            open_checkpoint(str(copy))


def read_unchecked(found: object, name: str) -> np.ndarray:
    variable = found.variables[name]  # type: ignore[attr-defined]
    data = Path(f"{found.prefix}.data-00000-of-00001").read_bytes()  # type: ignore[attr-defined]
    return np.frombuffer(data[variable.offset : variable.offset + variable.size], "<f4").reshape(variable.shape)


@pytest.mark.slow
def test_the_released_size_with_a_fresh_tensorflow(tmp_path: Path):
    """TensorFlow in an environment of its own writes the released network; DRWR_TENSORFLOW names one that exists."""
    python = os.environ.get("DRWR_TENSORFLOW") or install_tensorflow(tmp_path / "environment")
    script = Path(__file__).parent / "tensorflow_reference.py"
    written = subprocess.run(
        [python, script, tmp_path / "reference", "2000", "16", "1024", "128"],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert written.returncode == 0, written.stderr
    compare_outputs(tmp_path / "reference", config(points=2000, channels=16, hidden=1024), 128)


def install_tensorflow(folder: Path) -> str:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "tensorflow-cpu"], capture_output=True, text=True, timeout=1200
    )
    if done.returncode:
        pytest.skip(f"tensorflow-cpu can't be installed here: {done.stderr.strip().splitlines()[-1:]}")
    return str(python)
