"""The history of a run, written by rank 0: JSON lines for machines, TensorBoard for people."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
TENSORBOARD = "tensorboard"
HISTORY = (METRICS, VALIDATION, TENSORBOARD)

# metrics.jsonl key -> TensorBoard tag
TAGS = {
    "loss": "loss/total",
    "unary": "loss/unary",
    "repulsion": "loss/repulsion",
    "coverage": "loss/coverage",
    "crowding": "loss/crowding",
    "volumetric": "loss/volumetric",
    "sum": "loss/sum",
    "entropy": "loss/entropy",
    "chamfer_2d": "loss/chamfer_2d",
    "student": "loss/student",
    "repulsion_weight": "schedule/repulsion_weight",
    "learning_rate": "schedule/learning_rate",
    "gradient_norm": "optimizer/gradient_norm",
    "samples_per_second": "speed/samples_per_second",
    "straggler_seconds": "speed/straggler_seconds",
    "workers": "speed/workers",
    "seconds_data": "time/data",
    "seconds_forward": "time/forward",
    "seconds_loss": "time/loss",
    "seconds_backward": "time/backward",
    "seconds_all_reduce": "time/all_reduce",
    "seconds_agreement": "time/agreement",
    "seconds_optimizer": "time/optimizer",
    "memory_gib": "memory/process_gib",
    "memory_peak_gib": "memory/process_peak_gib",
    "gpu_memory_peak_gib": "memory/gpu_peak_gib",
    "skipped": "data/skipped_samples",
}

# The custom-scalars page: what belongs together, in the order in which one asks. Patterns of tags.
LAYOUT = {
    "Is it learning?": {
        "losses": ["Multiline", ["loss/.*"]],
        # The squared one has another scale: in the same chart it would press the others flat.
        "validation: Chamfer × 100": ["Multiline", ["validation/chamfer$", "validation/chamfer_.*_to_.*"]],
        "validation: F-score and IoU": ["Multiline", ["validation/f_score.*", "validation/(silhouette|voxel)_iou"]],
    },
    "Is it stable?": {
        "gradient norm": ["Multiline", ["optimizer/gradient_norm"]],
        "learning rate": ["Multiline", ["schedule/learning_rate"]],
        "skipped samples": ["Multiline", ["data/.*"]],
    },
    "Where does the time go?": {
        "samples per second": ["Multiline", ["speed/samples_per_second"]],
        "seconds per step": ["Multiline", ["time/.*"]],
        "waiting for a straggler": ["Multiline", ["speed/straggler_seconds"]],
        "memory, GiB": ["Multiline", ["memory/.*"]],
    },
}
# How the mesh page draws clouds.
CLOUD_STYLE = {"material": {"cls": "PointsMaterial", "size": 0.012}, "camera": {"cls": "PerspectiveCamera", "fov": 30}}


class Monitor:
    """Appends one row per logged step; on resuming at `step`, rows that will be made again are removed."""

    def __init__(self, run: Path, step: int):
        run.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, VALIDATION):
            drop_rows_after(run / name, step)
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._validation = run / VALIDATION
        self._who = {"run": run.name, "rank": 0, "node": socket.gethostname()}
        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)
        self._writer.add_custom_scalars(LAYOUT)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._writer.close()

    def log(self, step: int, row: dict[str, Any]) -> None:
        """Write the metrics after `step` steps."""
        self._file.write(json.dumps({"step": step, **row, **self._who}) + "\n")
        self._file.flush()
        for key, tag in TAGS.items():
            if key in row:
                self._writer.add_scalar(tag, row[key], step)

    def skips(self, step: int, counts: Mapping[str, int]) -> None:
        """Write how many samples of each shard were skipped so far."""
        for shard, count in counts.items():
            self._writer.add_scalar(f"data/skipped/{shard}", count, step)

    def validation(self, step: int, row: dict[str, Any]) -> None:
        """Write the scores on the validation split after `step` steps: validation.jsonl, and a tag for each score."""
        with self._validation.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **row, **self._who}) + "\n")
        for name, value in row.items():
            self._writer.add_scalar(f"validation/{name}", value, step)

    def picture(self, tag: str, picture: NDArray[np.uint8], step: int) -> None:
        """Show RGB [H, W, 3] on TensorBoard's images page."""
        self._writer.add_image(tag, picture, step, dataformats="HWC")

    def cloud(self, tag: str, points: Tensor, step: int) -> None:
        """Show points [N, 3] on TensorBoard's mesh page, coloured by height."""
        share = (points[:, 1:2] + 0.5).clamp(0, 1)
        low, high = torch.tensor([40.0, 80.0, 170.0]), torch.tensor([240.0, 150.0, 50.0])
        colours = (low * (1 - share) + high * share).to(torch.uint8)
        self._writer.add_mesh(tag, points[None], colours[None], config_dict=CLOUD_STYLE, global_step=step)

    def flush(self) -> None:
        """Bring the history to the disk itself: it must not be older than a checkpoint, should the power go."""
        self._writer.flush()
        self._file.flush()
        os.fsync(self._file.fileno())
        for path in (self._validation, self._validation.parent):  # the folder has the files' names
            if not path.exists():
                continue  # nothing was validated yet
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def text(self, tag: str, content: str) -> None:
        """Show a text, the resolved configuration for example, on TensorBoard's text page."""
        self._writer.add_text(tag, f"```yaml\n{content}\n```", 0)


def write_hparams(run: Path, config: Mapping[str, Any], split: str, scores: Mapping[str, Any]) -> None:
    """Put a run on TensorBoard's HParams page: its configuration (flat), and what it scored in the end."""
    values = {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in config.items()}
    results = {f"final/{split}/{name}": float(scores[name]) for name in scores if not name.startswith("objects")}
    with SummaryWriter(str(run / TENSORBOARD)) as writer:
        writer.add_hparams(values, results, run_name=".")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read metrics.jsonl; a line that a crash cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def drop_rows_after(path: Path, step: int) -> None:
    """Remove the rows of metrics.jsonl that lie after `step`: training goes on from there."""
    if not path.exists():
        return
    kept = [row for row in read_rows(path) if row.get("step", 0) <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    partial.replace(path)
