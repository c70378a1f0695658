from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from toy import drwr

import drwr_dist
from drwr_dist.cli import help_text, load_options, run_verb
from drwr_dist.config import TrainConfig, from_plain, to_plain
from drwr_dist.errors import UsageError
from drwr_dist.evaluate import EvaluateOptions
from drwr_dist.validation import validate


def load(*arguments: str) -> TrainConfig:
    config = load_options(TrainConfig, arguments, verb="train")
    validate(config)
    return config


def test_file_then_command_line(tmp_path: Path):
    file = tmp_path / "some.yaml"
    file.write_text("steps: 7\ndata: elsewhere\nloss:\n  grid: 64\noptimizer:\n  learning_rate: 1e-3\n")
    config = load("loss.grid=16", f"config={file}")
    assert (config.steps, config.loss.grid, config.data.path) == (7, 16, "elsewhere")
    assert config.optimizer.learning_rate == 1e-3


def test_paths_below_home(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ann")
    config = load("data=~/shapes", "init=~/runs/a", "storage=s3://bucket/~/runs", "data.categories=[a~/b]")
    assert (config.data.path, config.init, config.storage) == (
        "/home/ann/shapes",
        "/home/ann/runs/a",
        "s3://bucket/~/runs",
    )
    assert config.data.categories == ["a~/b"]
    assert load_options(EvaluateOptions, ["runs=~/a,~/b,pretrained"], verb="evaluate").runs == (
        "/home/ann/a,/home/ann/b,pretrained"
    )


def test_values_keep_their_types():
    config = load("data=DIR", "workers=[1,2]", "optimizer.learning_rate=3e-4", "data.categories=[chair,table]")
    assert config.data.path == "DIR" and config.workers == [1, 2] and config.data.categories == ["chair", "table"]
    assert config.optimizer.learning_rate == 3e-4
    assert from_plain(to_plain(config)) == config


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["stepz=3"], ["stepz", "steps"]),
        (["loss.gird=3"], ["loss.gird", "loss.grid"]),
        (["loss=3"], ["loss", "loss.KEY"]),
        (["steps"], ["steps", "key=value"]),
        (["steps=abc"], ["steps", "abc"]),
        (["steps=1.5"], ["steps", "1.5"]),
        (["steps=0"], ["steps=0", "at least 1"]),
        (["workers=9", "global_batch=8"], ["workers=9", "global_batch=8"]),
        (["workers=[2,1]"], ["workers"]),
        (["workers=two"], ["workers"]),
        (["precision=fp8"], ["precision", "bfloat16"]),
        (["loss.semantics=theirs"], ["loss.semantics", "released"]),
        (["optimizer.learning_rate=-1"], ["optimizer.learning_rate", "above 0"]),
        (["loss.theta=nan"], ["loss.theta", "above 0"]),
        (["name=a/b"], ["name", "a/b"]),
        (["config=/nowhere.yaml"], ["/nowhere.yaml", "No such file"]),
    ],
)
def test_mistakes_name_the_key_and_the_fix(arguments: list[str], names: list[str]):
    with pytest.raises(UsageError) as caught:
        load(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    for name in names:
        assert name in message


@pytest.mark.parametrize("content", ["steps: [", "- 1\n- 2\n", "\x00"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, content: str):
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(UsageError, match=r"bad\.yaml"):
        load(f"config={file}")


def test_presets_of_the_package_go_by_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert load("config=demo", "steps=5").model.points == 1000
    (tmp_path / "demo").write_text("model:\n  points: 7\n")  # one's own file of this name comes first
    assert load("config=demo").model.points == 7
    with pytest.raises(UsageError, match=r"config=paper\.yml: No such file.* paper"):
        load("config=paper.yml")


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path):
    file = tmp_path / "typo.yaml"
    file.write_text("optimiser:\n  learning_rate: 1\n")
    with pytest.raises(UsageError, match=r"optimiser.*typo\.yaml.*optimizer"):
        load(f"config={file}")


def test_help_lists_every_key_with_type_default_and_comment():
    text = help_text(TrainConfig, "train")
    for key in ("steps=1000", "data.path=shards/demo", "loss.grid=32", "cluster.address=local"):
        assert key in text
    lines = [line for line in text.splitlines() if line.startswith("  ")]
    assert len(lines) > 40
    assert all(": " in line and len(line.split(": ", 1)[1]) > 5 for line in lines), "every key has a comment"


def test_verbs_exit_with_2_and_one_line_on_usage_errors():
    for verb in ("train", "evaluate", "predict"):
        done = drwr(verb, "no_such_key=1")
        assert done.returncode == 2
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["train", "tune"])
@pytest.mark.parametrize(("argument", "code"), [("stepps=5", 2), ("loss.grid=many", 2), ("steps=-1", 2), ("--help", 0)])
def test_a_mistyped_key_does_not_wait_for_pytorch(tmp_path: Path, verb: str, argument: str, code: int):
    (tmp_path / "torch.py").write_text("raise SystemExit('PyTorch was asked for')")
    ended = subprocess.run(
        [sys.executable, "-m", f"drwr_dist.{verb}", argument],
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(drwr_dist.__file__).parents[1]}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == code, ended.stderr
    assert "PyTorch" not in ended.stderr


def test_every_preset_loads():
    presets = sorted(set(Path("configs").glob("*.yaml")) - {Path("configs/sweep.yaml")})  # that one is for tune
    assert presets
    for preset in presets:
        load(f"config={preset}")


@pytest.mark.parametrize(("number", "foreseen"), [(errno.ENOSPC, True), (errno.EROFS, True), (errno.ENOENT, False)])
def test_what_the_disk_refuses_is_one_line_and_a_mistake_of_ours_is_a_traceback(
    number: int, foreseen: bool, capsys: pytest.CaptureFixture[str]
):
    def work(arguments: Sequence[str]) -> int:
        raise OSError(number, os.strerror(number), "/runs/run/result.json")

    with pytest.raises(SystemExit if foreseen else OSError) as caught:
        run_verb(work, [])
    if foreseen:
        assert caught.value.code == 1
        assert capsys.readouterr().err == f"error: [Errno {number}] {os.strerror(number)}: '/runs/run/result.json'\n"


def test_it_is_found_from_the_folder_above_its_clone(tmp_path: Path):
    """There `drwr_dist` is a folder without code, and Python would rather take that than what an import hook knows."""
    (tmp_path / "drwr_dist" / "shards").mkdir(parents=True)
    code = "import drwr_dist.shards; print(drwr_dist.__version__)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == drwr_dist.__version__, done.stderr
