"""What is asked of a host or node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the checks."""

    timeout: float  # seconds that a check may take
    wait: float  # seconds until nodes must have joined
    min_disk: float  # GiB free
    min_shm: float  # GiB free in /dev/shm
    max_clock_difference: float  # seconds
    min_bandwidth: float  # Mbit/s of an all-reduce
    reduce_megabytes: float  # MiB of an all-reduce
