"""The history of a run, written by rank 0: JSON lines for machines, TensorBoard for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

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
    "skipped": "data/skipped_samples",
}


class Monitor:
    """Appends one row per logged step; on resuming at `step`, rows that will be made again are removed."""

    def __init__(self, run: Path, step: int):
        run.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, VALIDATION):
            drop_rows_after(run / name, step)
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._validation = run / VALIDATION
        self._writer = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._writer.close()

    def log(self, step: int, row: dict[str, Any]) -> None:
        """Write the metrics after `step` steps."""
        self._file.write(json.dumps({"step": step, **row}) + "\n")
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
            file.write(json.dumps({"step": step, **row}) + "\n")
        for name, value in row.items():
            self._writer.add_scalar(f"validation/{name}", value, step)

    def flush(self) -> None:
        """Bring what TensorBoard's writer holds back to its file."""
        self._writer.flush()

    def text(self, tag: str, content: str) -> None:
        """Show a text, the resolved configuration for example, on TensorBoard's text page."""
        self._writer.add_text(tag, f"```yaml\n{content}\n```", 0)


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
