"""torch.compile for the network: fewer, larger kernels; on a GPU recorded as CUDA graphs too, if wanted.

The loss stays as it is: its gradients are written in closed form already, and nearest neighbours leave the graph.
The first step of a run, and of each new batch size, takes the time to compile.
"""

from __future__ import annotations

import os
import shutil

import torch
from torch import nn

MODES = {"inductor": "default", "cuda_graphs": "reduce-overhead"}  # the key compile → torch's mode


def compiled(network: nn.Module, choice: str) -> nn.Module:
    """Return a module that computes what `network` does, with the same weights; `choice` is the key compile."""
    if choice == "none":
        return network
    # Wrapped around DDP, so that PyTorch cuts the graph where DDP's buckets end, and gradients travel early.
    fast: nn.Module = torch.compile(network, mode=MODES[choice])  # type: ignore[assignment]
    return fast


def begin_pass(choice: str) -> None:
    """Say that what earlier passes have returned is no longer read, as recorded CUDA graphs need to know."""
    if choice != "none":  # the call imports the whole compiler, which takes seconds
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]


def trouble(choice: str, device: torch.device) -> str | None:
    """Say why `choice` does not work on this device, having compiled a few numbers' sum; None: it does."""
    if choice == "none":
        return None
    if choice == "cuda_graphs" and device.type != "cuda":
        return f"compile=cuda_graphs: there are none on {device.type}; set compile=inductor or compile=none"

    def double(numbers: torch.Tensor) -> torch.Tensor:
        return numbers + numbers

    try:
        torch.compile(double)(torch.ones(8, device=device))
    except Exception as error:  # whatever a missing compiler, header or Triton raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return f"compile={choice}: torch.compile does not work here ({reason}); set compile=none"
    return None


def has_compiler() -> bool:
    """Say whether this machine has what torch.compile calls: a C++ compiler (CXX, else g++ or clang++)."""
    named = os.environ.get("CXX")
    return any(shutil.which(program) for program in ([named] if named else ["g++", "clang++"]))
