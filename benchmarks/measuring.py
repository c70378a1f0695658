"""What every benchmark needs: where it was measured, medians, and a dated file of the numbers."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def provenance() -> dict[str, str]:
    """Return date, commit, processor and versions."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "cpu": next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def summary(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Return median, lowest and highest, rounded to significant digits."""
    numbers = {"median": float(np.median(values)), "lowest": min(values), "highest": max(values)}
    return {name: float(f"{number:.{digits}g}") for name, number in numbers.items()}


def save(name: str, content: dict[str, Any], output: str = "") -> None:
    """Write benchmarks/results/<name>-<date>.json, or the file `output`; "none" writes nothing."""
    if output == "none":
        return
    path = Path(output) if output else RESULTS / f"{name}-{content['about']['date']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def reset_peak() -> int:
    """Begin a new measurement of peak memory (Linux); return the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    return _status("VmRSS")


def peak() -> int:
    """Return the highest resident memory since `reset_peak`, in bytes."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)
