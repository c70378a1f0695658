"""What all ranks agree on before an optimizer step: are the losses finite, did a sample fail, shall we stop.

One small all-reduce a step. A rank that has found a problem never leaves the others waiting in a collective: it
goes on with an empty contribution, and all ranks end together at the same step with the same message.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from drwr_dist.errors import DrwrError, TrainingError

Made = TypeVar("Made")


@dataclass
class Tally:
    """Sums over one rank's part of a global batch; after `agree`, over the whole global batch."""

    samples: float = 0.0  # objects that contributed to the loss
    loss: float = 0.0  # sum over these objects of the weighted loss
    unary: float = 0.0  # sum of the unweighted unary terms
    repulsion: float = 0.0  # sum of the unweighted repulsion terms
    coverage: float = 0.0  # as these two
    crowding: float = 0.0  # as these
    volumetric: float = 0.0  # and so for the released code's other terms
    sum: float = 0.0
    entropy: float = 0.0
    chamfer_2d: float = 0.0
    student: float = 0.0  # how far the believed cameras are from the best candidates
    skipped: float = 0.0  # samples that could not be used and were skipped
    failed: float = 0.0  # samples that could not be used and must not be skipped
    not_finite: float = 0.0  # ranks whose loss, or its gradient, is not finite
    stop: float = 0.0  # ranks that were asked to stop


def agree(tally: Tally, busy: float, device: torch.device) -> tuple[Tally, list[float]]:
    """Sum a tally over all ranks, and let everyone know how long each rank was busy; all get the same result.

    Args:
        tally: this rank's part.
        busy: seconds that this rank took before the others had to wait for it.
        device: of the process group's backend.

    Returns:
        The sums, and the busy seconds of every rank.
    """
    world_size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    sums = dataclasses.astuple(tally)
    values = torch.zeros(len(sums) + world_size, dtype=torch.float64)
    values[: len(sums)] = torch.tensor(sums, dtype=torch.float64)
    values[len(sums) + rank] = busy
    values = values.to(device)
    if world_size > 1:
        dist.all_reduce(values)
    numbers = values.tolist()
    return Tally(*numbers[: len(sums)]), numbers[len(sums) :]


def fail_together(message: str | None) -> None:
    """Raise TrainingError on all ranks, with the messages of those that have one. All ranks must call this."""
    messages = [message]
    if dist.is_initialized() and dist.get_world_size() > 1:
        messages = [None] * dist.get_world_size()
        dist.all_gather_object(messages, message)
    told = [text for text in messages if text]
    if told:
        raise TrainingError("; ".join(dict.fromkeys(told)))  # what all found, said once


def on_all_ranks(work: Callable[[], Made]) -> Made:
    """Do what can fail on one rank alone, a node that doesn't see a file for example. All ranks must call this.

    Raises:
        TrainingError: on all ranks, where `work` can't use what it finds on one, or can't read or write a file.
    """
    made, problem = None, None
    try:
        made = work()
    except (DrwrError, OSError) as error:
        problem = str(error)
    fail_together(problem)
    return cast(Made, made)


def on_first_rank(work: Callable[[], Made]) -> Made | None:
    """As `on_all_ranks`, on rank 0 alone; the others get None. All ranks must call this."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    return on_all_ranks(work if first else lambda: None)


def count_together(names: Iterable[str]) -> Counter[str]:
    """Count names over all ranks; all ranks must call this and get the same counts."""
    parts = [Counter(names)]
    if dist.is_initialized() and dist.get_world_size() > 1:
        parts *= dist.get_world_size()
        dist.all_gather_object(parts, parts[0])
    return sum(parts, Counter())


def share(content: bytes | None, device: torch.device) -> bytes:
    """Return rank 0's bytes on every rank. All ranks must call this; only rank 0's `content` is read."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return content or b""
    size = torch.tensor([len(content or b"")], dtype=torch.int64, device=device)
    dist.broadcast(size, src=0)
    first = dist.get_rank() == 0
    empty = torch.empty(int(size), dtype=torch.uint8)
    values = (torch.frombuffer(bytearray(content or b""), dtype=torch.uint8) if first and content else empty).to(device)
    if len(values):
        dist.broadcast(values, src=0)
    return values.cpu().numpy().tobytes()


def gather_rows(rows: torch.Tensor) -> tuple[torch.Tensor, slice]:
    """Put the rows [M, C] of all ranks together, M differing from rank to rank. All ranks must call this.

    Returns:
        All rows in the order of ranks, and where this rank's own are. No gradient flows.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, slice(0, len(rows))
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    sizes = [int(each) for each in counts]
    padded = rows.new_zeros(max(sizes), rows.shape[1])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    start = sum(sizes[: dist.get_rank()])
    together = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(together), slice(start, start + len(rows))
