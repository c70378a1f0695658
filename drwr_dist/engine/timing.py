"""Where the time of a step goes: laps of a stopwatch, averaged over the steps of an interval."""

from __future__ import annotations

import os
import resource
import sys
import time

import torch
from torch import Tensor, nn

PHASES = ("data", "forward", "loss", "backward", "all_reduce", "agreement", "optimizer")


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
        self._watched = False
        self._last = time.perf_counter()
        self._gradient = self._last  # when this rank's last gradient of a parameter was there
        self._ready: torch.cuda.Event | None = None  # the same, on a GPU

    def watch(self, network: nn.Module) -> None:
        """Tell the all-reduce of DDP from the backward pass: what comes after this rank's own last gradient.

        What DDP exchanges while gradients are still computed costs nothing, and is not counted.
        """
        self._watched = True
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._mark)  # type: ignore[no-untyped-call]

    def _mark(self, gradient: Tensor) -> None:
        self._gradient = time.perf_counter()
        if self._waits and self._sampled:
            self._ready = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._ready.record()

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
        end = None
        if self._waits:
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end.record()
            torch.cuda.synchronize()
        now = time.perf_counter()
        if phase == "backward" and self._watched:
            exchanged = self._exchanged(now, end)
            self._add("all_reduce", exchanged)
            self._last += exchanged
        self._add(phase, now - self._last)
        self._last = now

    def _exchanged(self, now: float, end: torch.cuda.Event | None) -> float:
        """Return the seconds between this rank's own last gradient and the end of the backward pass."""
        since = self._ready.elapsed_time(end) / 1000 if self._ready and end else now - self._gradient
        return min(max(0.0, since), now - self._last)

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds

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
