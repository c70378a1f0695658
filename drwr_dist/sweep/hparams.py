"""The sweep in TensorBoard: a curve per trial, and the HParams page over all of them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from drwr_dist.monitor import TENSORBOARD
from drwr_dist.sweep.leaderboard import as_text
from drwr_dist.sweep.measuring import SPLIT
from drwr_dist.sweep.trials import Trial


def write_hparams(sweep: Path, trials: Sequence[Trial], metric: str) -> Path:
    """Write the events of all measured trials anew; return their folder."""
    target = sweep / TENSORBOARD
    shutil.rmtree(target, ignore_errors=True)
    tag = f"{SPLIT}/{metric}"
    for trial in trials:
        if trial.last is None:
            continue
        values = {
            key: value if isinstance(value, (bool, int, float, str)) else as_text(value)
            for key, value in trial.parameters.items()
        }
        labels = {"category": trial.category, "candidate": trial.candidate, "state": trial.state}
        results = {f"final/{metric}": trial.last["value"], "final/seconds": trial.last["seconds"]}
        with SummaryWriter(str(target / trial.id)) as writer:
            for row in trial.history:
                writer.add_scalar(tag, row["value"], int(row["step"]))
            writer.add_hparams({**labels, **values}, results, run_name=".")
    return target
