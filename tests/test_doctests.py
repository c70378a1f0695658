"""What docs/api.md shows: every function says what it takes and gives, with an example that runs."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from toy import REPOSITORY, untrained_run

PUBLIC = re.findall(r"^::: ([\w.]+)$", (REPOSITORY / "docs/api.md").read_text(encoding="utf-8"), re.MULTILINE)
OUTSIDE = {  # called by others under these names; they may not go
    "drwr_dist.load",
    "drwr_dist.camera.project",
    "drwr_dist.camera.world_to_camera_from_position",
    "drwr_dist.camera.world_to_camera_from_quaternion",
    "drwr_dist.camera.world_to_camera_from_extrinsic",
    "drwr_dist.silhouette.smooth_silhouette",
    "drwr_dist.losses.drwr_loss",
    "drwr_dist.metrics.chamfer_distance",
}


def resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name: a run, a photo, the demo shards."""
    folder = tmp_path_factory.mktemp("examples")
    untrained_run(folder / "runs/mine", points=64)
    Image.new("RGB", (90, 60), "white").save(folder / "photo.jpg")
    (folder / "shards").symlink_to(REPOSITORY / "shards")
    return folder


def test_the_contract_is_documented():
    assert set(PUBLIC) >= OUTSIDE


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_give_what_they_say(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(workplace)
    found = resolve(name)
    owner = inspect.getmodule(found)
    assert owner is not None
    examples = doctest.DocTestFinder().find(found, name, module=owner, globs=vars(owner) | {"torch": torch})
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for example in examples:
        runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)
    if name != "drwr_dist.inference.ImageToPoints":  # made by `load`, which has the example
        assert runner.tries > 0, f"{name} has no example"


@pytest.mark.parametrize("name", PUBLIC)
def test_docstrings_name_every_argument_and_every_shape(name: str):
    found = resolve(name)
    text = inspect.getdoc(found) or ""
    if inspect.isclass(found):
        assert len(text.splitlines()) > 0
        return
    signature = inspect.signature(found)
    explained = text.partition("Args:")[2] or text
    assert [parameter for parameter in signature.parameters if not re.search(rf"\b{parameter}\b", explained)] == []
    tensors = [name for name, value in signature.parameters.items() if "Tensor" in str(value.annotation)]
    if tensors:
        assert "[" in text or "any shape" in text, f"{name}: no shapes"
    if "raise " in inspect.getsource(found) or "_require" in inspect.getsource(found):
        assert "Raises:" in text, f"{name} raises, and its docstring doesn't say what"
