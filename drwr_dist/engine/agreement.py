"""What all ranks agree on before an optimizer step: are the losses finite, did a sample fail, shall we stop.

One small all-reduce a step. A rank that has found a problem never leaves the others waiting in a collective: it
goes on with an empty contribution, and all ranks end together at the same step with the same message.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.distributed as dist

from drwr_dist.errors import TrainingError


@dataclass
class Tally:
    """Sums over one rank's part of a global batch; after `agree`, over the whole global batch."""

    samples: float = 0.0  # objects that contributed to the loss
    loss: float = 0.0  # sum over these objects of the weighted loss
    unary: float = 0.0  # sum of the unweighted unary terms
    repulsion: float = 0.0  # sum of the unweighted repulsion terms
    skipped: float = 0.0  # samples that could not be used and were skipped
    failed: float = 0.0  # samples that could not be used and must not be skipped
    not_finite: float = 0.0  # ranks whose loss is not finite
    stop: float = 0.0  # ranks that were asked to stop


def agree(tally: Tally, device: torch.device) -> Tally:
    """Sum a tally over all ranks; every rank gets the same result."""
    values = torch.tensor(dataclasses.astuple(tally), dtype=torch.float64, device=device)
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return Tally(*values.tolist())


def fail_together(message: str | None) -> None:
    """Raise TrainingError on all ranks, with the messages of those that have one. All ranks must call this."""
    messages = [message]
    if dist.is_initialized() and dist.get_world_size() > 1:
        messages = [None] * dist.get_world_size()
        dist.all_gather_object(messages, message)
    told = [text for text in messages if text]
    if told:
        raise TrainingError("; ".join(told))
