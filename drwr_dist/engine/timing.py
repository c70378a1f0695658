"""Where the time of a step goes: laps of a stopwatch, averaged over the steps of an interval."""

from __future__ import annotations

import os
import resource
import sys
import time

import torch

PHASES = ("data", "forward", "loss", "backward", "agreement", "optimizer")


class StepTimer:
    """Adds up the seconds of each phase.

    A GPU works on after a call has returned. Waiting for it at every phase would slow training down, so that there
    only the steps that are `sampled` are measured.
    """

    def __init__(self, device: torch.device):
        self._waits = device.type == "cuda"
        self._seconds: dict[str, float] = {}
        self._steps = 0
        self._sampled = True
        self._last = time.perf_counter()

    def begin(self) -> None:
        """Start with the first phase of a step: waiting for data."""
        self._last = time.perf_counter()

    def sample(self, sampled: bool) -> None:
        """Say whether this step is to be measured on a GPU; on a CPU all are."""
        self._sampled = sampled or not self._waits
        self._steps += self._sampled

    def lap(self, phase: str) -> None:
        """End a phase."""
        if not self._sampled:
            return
        if self._waits:
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def close_interval(self) -> dict[str, float]:
        """Return the mean seconds per step of each phase as `seconds_<phase>`, and start afresh."""
        means = {f"seconds_{phase}": self._seconds.get(phase, 0.0) / max(1, self._steps) for phase in PHASES}
        self._seconds, self._steps = {}, 0
        return means


def memory(device: torch.device) -> dict[str, float]:
    """Return the memory of this process, now and at most, and of its GPU, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found = {"memory_peak_gib": peak / 2**30}
    try:
        with open("/proc/self/statm") as file:
            found["memory_gib"] = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except OSError:  # not Linux
        pass
    if device.type == "cuda":
        found["gpu_memory_peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found
