"""The network that comes with the package, `run=pretrained`: a run's folder, with weights in half precision.

It knows cabinets, chairs, lamps, sofas and tables (docs/quality.md). `make pretrained` builds it again; LICENCES.md
names the authors of the shapes from which it learnt.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from drwr_dist import checkpoint
from drwr_dist.data.remote import absolute
from drwr_dist.errors import UsageError
from drwr_dist.run import TrainedRun, save_config

NAME = "pretrained"
FOLDER = Path(__file__).parent


def is_bundled(run: str) -> bool:
    """Say whether a run's address means the package's own network: a folder of that name here comes first."""
    return run == NAME and not os.path.isdir(run)


def located(run: str | os.PathLike[str]) -> str:
    """Return where a run is: `pretrained` is the package's own, a folder becomes absolute, a URL stays as it is.

    Raises:
        UsageError: the package was built without the network.
    """
    name = os.fspath(run)
    if not is_bundled(name):
        return absolute(name)
    if not checkpoint.names(FOLDER):
        raise UsageError(f"run={NAME}: this package was built without the network; `make {NAME}` builds it")
    return str(FOLDER)


def write_weights(run: TrainedRun, folder: Path) -> None:
    """Write a run's configuration and weights, in half precision, as a run that predicts and can be started from.

    The state of the optimizer and the history are left out; what lies in `folder` as a checkpoint is replaced.

    Args:
        run: the run.
        folder: where the new run's folder is, or will be.

    Raises:
        UsageError: it can't be written.
        TrainingError: the disk is full; the checkpoint that was there stays.
    """
    state = {name: value.to(torch.float16) for name, value in run.model.state_dict().items()}
    meta = {"weights": "float16"}
    data = replace(run.config.data, path=os.path.basename(run.config.data.path))
    config = replace(run.config, name=folder.name, storage="runs", init=None, data=data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = checkpoint.write(folder, run.step, {"model": state}, meta)
        save_config(folder, config, run.image_size)
        for other in checkpoint.folders(folder):
            if other != written:  # only now: a full disk must not cost the network that was there
                shutil.rmtree(other)
    except OSError as error:
        raise UsageError(f"output={folder}: can't be written ({error.strerror or error})") from error
