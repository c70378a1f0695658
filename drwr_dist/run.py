"""A run on disk: `<storage>/<name>/` with its configuration, checkpoints, history and results."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from drwr_dist import checkpoint
from drwr_dist.config import TrainConfig, flat_keys, from_plain, is_learnt, to_plain
from drwr_dist.errors import DataError, UsageError
from drwr_dist.model import build_network
from drwr_dist.storage import Storage

CONFIG = "config.yaml"
RESULT = "result.json"


@dataclass(frozen=True)
class TrainedRun:
    """A run that can predict."""

    path: Path
    config: TrainConfig
    image_size: int  # pixels a side of the images that the network takes
    step: int  # steps that the loaded weights have been trained
    model: torch.nn.Module  # in evaluation mode, on the CPU
    url: str | None = None  # what `path` is a working copy of

    @property
    def storage(self) -> Storage:
        """Where it lies."""
        return Storage(self.path, self.url)


def save_config(run: Path, config: TrainConfig, image_size: int) -> None:
    """Write the resolved configuration, with the image size of the data it was made for."""
    partial = run / f".{CONFIG}.partial"
    run.mkdir(parents=True, exist_ok=True)
    partial.write_text(f"# image_size: {image_size}\n" + yaml.safe_dump(to_plain(config), sort_keys=False))
    partial.replace(run / CONFIG)


def load_config(run: Path) -> tuple[TrainConfig, int]:
    """Read a run's configuration; return it and the image size.

    Raises:
        UsageError: there is no run in this folder.
        DataError: its configuration can't be read.
    """
    path = run / CONFIG
    if not path.exists():
        raise UsageError(f"run={run}: no run here (no {CONFIG}); give the folder <storage>/<name> of a training run")
    try:
        text = path.read_text(encoding="utf-8")
        image_size = int(text.splitlines()[0].removeprefix("# image_size: "))
        return from_plain(yaml.safe_load(text)), image_size
    except Exception as error:
        reason = "it is empty" if not path.stat().st_size else str(error).splitlines()[0]
        raise DataError(
            f"{path}: not a run's configuration: {reason}; restore it, or train afresh with overwrite=true"
        ) from error


def load_run(run: str | os.PathLike[str], which: str = "last") -> TrainedRun:
    """Read a checkpoint of a run into its network.

    Args:
        run: folder or URL.
        which: last: the newest sound one; best: by the validation metric; or a number of steps. auto: the one by
            which the run itself is judged (`evaluation.checkpoint`), the last where none has a score yet.

    Raises:
        UsageError: there is no run, it has no checkpoint yet, or not this one.
        TrainingError: the checkpoint is damaged (last: every one is).
        DataError: the URL can't be reached.
    """
    storage = Storage.at(run)
    storage.fetch(CONFIG, RESULT)
    config, image_size = load_config(storage.folder)
    if which == "auto":
        which = config.evaluation.checkpoint
        if which == "best" and checkpoint.best_of(storage.address, config.validation.metric) is None:
            which = "last"
    name = checkpoint.choose(storage.address, which, config.validation.metric)
    if name is None:
        first = min(config.checkpoint.every, config.steps)
        raise UsageError(f"run={storage.address}: no checkpoint yet; training writes the first after step {first}")
    last = checkpoint.load_newest(storage.address) if which == "last" else None
    loaded = last or checkpoint.load(storage.address, name)
    model = untrained_model(config, image_size)
    model.load_state_dict(loaded.state["model"])
    return TrainedRun(storage.folder, config, image_size, loaded.step, model.eval(), storage.url)


def untrained_model(config: TrainConfig, image_size: int) -> torch.nn.Module:
    """Return the network with which this run starts: the same seed gives the same weights."""
    torch.manual_seed(config.seed)
    return build_network(config, image_size).eval()


def refuse_changes(run: Path, config: TrainConfig) -> None:
    """Raise UsageError where a run of this name exists that learns something else."""
    before = flat_keys(to_plain(load_config(run)[0]))
    for key, value in flat_keys(to_plain(config)).items():
        if not is_learnt(key):
            continue
        old = before.get(key)
        if old != value:
            raise UsageError(
                f"{key}={value}: run {run} was started with {key}={old}; give that, another name=…, or overwrite=true"
            )


def remove(run: Path) -> list[str]:
    """Remove everything that lies in a run's folder, but its lock; return the names of what was removed."""
    removed = []
    for path in sorted(run.iterdir()) if run.exists() else []:
        if path.name != ".lock":
            removed.append(path.name)
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return removed


def load_result(run: Path) -> dict[str, Any]:
    """Read result.json, or return {} where there is none (or a damaged one: it can be made again)."""
    try:
        content = json.loads((run / RESULT).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
