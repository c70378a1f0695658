"""What workers exchange: gradients at every step, halved or for several passes at once, or weights now and then.

With `communication.average_every=1` DDP averages the gradients of every step. Above 1, each worker steps on its own
gradient (local SGD), and weights and moments are averaged after every so many steps and after the last one. In between
ranks differ, so that nothing is saved or validated there; right after, every rank holds what rank 0 saves, and a run
goes on from a checkpoint exactly, with the same number of workers.
"""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from drwr_dist.config import CommunicationConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.plan import rank_slice

_BUCKET = 25 * 2**20  # bytes that are averaged at a time


def distributed(network: nn.Module, device: torch.device, config: CommunicationConfig) -> DistributedDataParallel:
    """Wrap a network in DDP: all ranks get rank 0's weights, and the gradients as `config` says."""
    devices = [device] if device.type == "cuda" else None
    wrapped = DistributedDataParallel(
        network, device_ids=devices, gradient_as_bucket_view=True, static_graph=config.static_graph
    )
    if config.compression == "bfloat16":
        # DDP refuses torch's own hook, by its name, where there is no CUDA; gloo adds bfloat16 numbers all the same.
        wrapped.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
    return wrapped


def exchanging(network: nn.Module, exchange: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context for a forward and its backward pass, in which DDP exchanges gradients, or only adds them up."""
    if exchange or not isinstance(network, DistributedDataParallel):
        return contextlib.nullcontext()
    held: contextlib.AbstractContextManager[None] = network.no_sync()
    return held


def parts(batch: Batch, count: int) -> list[Batch]:
    """Cut a rank's part of a step into at most `count` parts, whose sizes differ by at most one; an empty one stays.

    Failed samples are with the whole alone.
    """
    count = min(count, len(batch.keys))
    if count < 2:
        return [batch]
    slices = [rank_slice(range(len(batch.keys)), number, count) for number in range(count)]
    return [batch.select(slice(int(rows[0]), int(rows[-1]) + 1)) for rows in slices]


def same_weights(steps_done: int, steps: int, config: CommunicationConfig) -> bool:
    """Say whether all ranks hold the same weights after so many of a run's steps."""
    return steps_done % config.average_every == 0 or steps_done >= steps


@torch.no_grad()
def average(model: nn.Module, optimizer: Optimizer) -> None:
    """Replace weights and moments by their means over all ranks; all ranks must call this and get the same numbers."""
    state = [
        value
        for parameter in model.parameters()
        for name, value in sorted(optimizer.state[parameter].items())
        if isinstance(value, Tensor) and value.shape == parameter.shape and name != "step"
    ]
    bucket: list[Tensor] = []
    for tensor in [*model.parameters(), *state]:
        bucket.append(tensor)
        if sum(entry.numel() * entry.element_size() for entry in bucket) >= _BUCKET:
            _average(bucket)
            bucket = []
    if bucket:
        _average(bucket)


def _average(tensors: list[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))  # in place: layouts stay as they are
