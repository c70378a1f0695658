from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import random
import subprocess
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch

from drwr_dist import checkpoint
from drwr_dist.errors import TrainingError
from drwr_dist.monitor import Monitor


def state(value: float) -> dict[str, object]:
    return {"model": {"weight": torch.full((3,), value)}, "skipped": 2}


def test_the_newest_checkpoint_comes_back(tmp_path: Path):
    for step in (10, 20, 30):
        checkpoint.write(tmp_path, step, state(step), {"seed": 1})
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded and loaded.step == 30 and loaded.damaged == ()
    assert torch.equal(loaded.state["model"]["weight"], torch.full((3,), 30.0)) and loaded.state["skipped"] == 2
    checkpoint.prune(tmp_path, keep=2)
    assert checkpoint.names(tmp_path) == ["step-00000030", "step-00000020"]


def test_no_checkpoint_is_none(tmp_path: Path):
    assert checkpoint.load_newest(tmp_path) is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "no state", "no meta", "bad meta"])
def test_a_damaged_checkpoint_is_passed_over_and_reported(tmp_path: Path, damage: str):
    for step in (10, 20):
        checkpoint.write(tmp_path, step, state(step), {})
    file = tmp_path / "checkpoints" / "step-00000020" / "state.pt"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-100])
    elif damage == "no state":
        file.unlink()
    elif damage == "no meta":
        (file.parent / "meta.json").unlink()
    else:
        (file.parent / "meta.json").write_text("{")
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded and loaded.step == 10
    assert len(loaded.damaged) == 1 and "step-00000020" in loaded.damaged[0]


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(tmp_path: Path):
    checkpoint.write(tmp_path, 10, state(1), {})
    (tmp_path / "checkpoints" / "step-00000010" / "state.pt").write_bytes(b"")
    with pytest.raises(TrainingError, match="step-00000010"):
        checkpoint.load_newest(tmp_path)


def test_an_unfinished_write_is_not_a_checkpoint(tmp_path: Path):
    checkpoint.write(tmp_path, 10, state(1), {})
    partial = tmp_path / "checkpoints" / ".step-00000020.partial"
    partial.mkdir()
    loaded = checkpoint.load_newest(tmp_path)
    assert loaded and loaded.step == 10
    checkpoint.prune(tmp_path, keep=5)
    assert not partial.exists()


def write_on_and_on(run: Path, step: int, told: Connection) -> None:
    while True:
        step += 1
        checkpoint.write(run, step, state(step), {})
        told.send(step)
        checkpoint.prune(run, keep=2)


def test_a_writer_killed_at_any_moment_leaves_all_that_was_written(tmp_path: Path):
    """SIGKILL at 25 random moments: never a damaged checkpoint, never an older one than was reported."""
    context, numbers, step = multiprocessing.get_context("fork"), random.Random(0), 0
    for _ in range(25):
        here, there = context.Pipe(duplex=False)
        writer = context.Process(target=write_on_and_on, args=(tmp_path, step, there))
        writer.start()
        there.close()
        here.poll(30)  # it writes
        time.sleep(numbers.uniform(0, 0.03))
        writer.kill()
        writer.join(30)
        try:
            while True:
                step = here.recv()
        except EOFError:
            pass
        loaded = checkpoint.load_newest(tmp_path)
        assert loaded and loaded.step >= step and not loaded.damaged
        assert torch.equal(loaded.state["model"]["weight"], torch.full((3,), float(loaded.step)))
        step = loaded.step
    assert step >= 25


def test_the_whole_history_is_on_disk_before_a_checkpoint_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A sweep compares runs by validation.jsonl: it may not be older than a checkpoint, as metrics.jsonl may not."""
    fsync, flushed = os.fsync, []

    def note(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    with Monitor(tmp_path, 0) as monitor:
        monitor.log(1, {"loss": 1.0})
        monitor.flush()
        assert flushed == [f"{tmp_path}/metrics.jsonl", str(tmp_path)], "nothing was validated yet"
        monitor.validation(2, {"chamfer": 1.0})
        monitor.flush()
    assert {f"{tmp_path}/metrics.jsonl", f"{tmp_path}/validation.jsonl"} < set(flushed)


class Malice:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


def test_a_checkpoint_that_wants_to_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = checkpoint.write(tmp_path, 10, state(1), {})
    for content in (pickle.dumps(Malice()), None):
        if content is None:
            torch.save({"model": Malice()}, path / "state.pt")
        else:
            (path / "state.pt").write_bytes(content)
        meta = json.loads((path / "meta.json").read_text())
        meta["sha256"] = checkpoint._sha256(path / "state.pt")
        (path / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(TrainingError, match="step-00000010"):
            checkpoint.load(tmp_path, path.name)
    assert not (tmp_path / "pwned").exists()


@pytest.fixture
def small_disk(tmp_path: Path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before_it(small_disk: Path):
    checkpoint.write(small_disk, 10, state(1), {})
    with pytest.raises(TrainingError, match=r"step-00000020.*(space|writ)"):
        checkpoint.write(small_disk, 20, {"model": torch.zeros(10**6)}, {})
    loaded = checkpoint.load_newest(small_disk)
    assert loaded and loaded.step == 10 and not loaded.damaged
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["step-00000010"]
