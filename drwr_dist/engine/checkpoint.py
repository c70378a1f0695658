"""Checkpoints on disk: `<run>/checkpoints/step-00000200/` with `state.pt` and `meta.json`.

What is on disk is the truth: a checkpoint counts once its folder has its final name and its checksum holds, even
where the process died before Ray heard of it. Writing goes to a temporary name, is flushed, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drwr_dist.errors import TrainingError

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read: its state, its step, and the damaged ones that were passed over."""

    state: dict[str, Any]
    step: int
    path: Path
    damaged: tuple[str, ...]


def folders(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first; unfinished ones are not among them."""
    found = [path for path in (run / FOLDER).glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, reverse=True)


def write(run: Path, step: int, state: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Write the state after `step` steps and return its folder.

    Raises:
        TrainingError: the disk is full or the folder can't be written; earlier checkpoints stay as they are.
    """
    final = run / FOLDER / f"step-{step:08d}"
    partial = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        torch.save(state, partial / "state.pt")
        content = {"step": step, "sha256": _sha256(partial / "state.pt"), **meta}
        (partial / "meta.json").write_text(json.dumps(content, indent=1))
        for name in ("state.pt", "meta.json"):
            _flush(partial / name)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _flush(final.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"checkpoint {final} could not be written: {error}; the checkpoints before it are untouched, "
            "make room and run the same command again"
        ) from error
    return final


def prune(run: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints of a run, and leftovers of interrupted writes."""
    for path in folders(run)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in (run / FOLDER).glob(".step-*.partial"):
        shutil.rmtree(path, ignore_errors=True)


def load_newest(run: Path) -> Loaded | None:
    """Read the newest sound checkpoint of a run, or return None where there is none yet.

    Raises:
        TrainingError: there are checkpoints, but every one of them is damaged.
    """
    damaged: list[str] = []
    for path in folders(run):
        try:
            state, step = read(path)
            return Loaded(state, step, path, tuple(damaged))
        except TrainingError as error:
            damaged.append(str(error))
    if damaged:
        raise TrainingError(f"{run / FOLDER}: no sound checkpoint is left; {damaged[0]}; start afresh: overwrite=true")
    return None


def read(path: Path) -> tuple[dict[str, Any], int]:
    """Read one checkpoint folder, return (state, step). Nothing in it can run code.

    Raises:
        TrainingError: a file is missing, its checksum is wrong, or it holds more than tensors and plain values.
    """
    try:
        meta = json.loads((path / "meta.json").read_text())
        if _sha256(path / "state.pt") != meta["sha256"]:
            raise TrainingError(f"{path / 'state.pt'}: damaged (its checksum differs from meta.json)")
        state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        return state, int(meta["step"])
    except TrainingError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"{path}: not a sound checkpoint: {reason}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
