"""How the numbers of the network lie in memory: channels last, which convolutions are quicker with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def arrange(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Move a network, in place, to a device and dtype, its convolutions' weights with channels last."""
    model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state and lay out each tensor as its parameter is.

    The fused kernels walk through parameter, gradient and moments side by side. A state that was saved with another
    layout, from before a change of it, say, would be mixed up silently.
    """
    optimizer.load_state_dict(state)
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                entries[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
