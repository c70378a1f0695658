"""Where the time of a training step goes: the step of `engine/worker`, phase by phase, with a clock of one's choice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from drwr_dist.config import TrainConfig
from drwr_dist.data.stream import Batch
from drwr_dist.engine import layout, schedule
from drwr_dist.engine.agreement import gather_rows
from drwr_dist.engine.objective import objective
from drwr_dist.model import AllHeads, Prediction, build_network

PHASES = ("data wait", "forward", "loss", "backward", "all-reduce", "optimizer")


class StepTimer:
    """A network and its optimizer, as training builds them, and a stopwatch."""

    def __init__(
        self,
        config: TrainConfig,
        image_size: int,
        device: torch.device,
        clock: Callable[[], float] = time.perf_counter,
        world_size: int = 1,
    ):
        self.config, self.device, self.clock = config, device, clock
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        torch.manual_seed(config.seed)
        self.model = build_network(config, image_size)
        layout.arrange(self.model, device, self.dtype)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.0, fused=True)
        self.network: nn.Module = AllHeads(self.model)
        if world_size > 1:
            devices = [device] if device.type == "cuda" else None
            self.network = DistributedDataParallel(self.network, device_ids=devices, gradient_as_bucket_view=True)

    def step(self, batch: Batch, number: int, synchronise: bool = True) -> dict[str, float]:
        """Make one step; return the seconds of each phase but the data wait and the all-reduce.

        Args:
            batch: of this rank, on the device.
            number: of the step, for the schedules.
            synchronise: average the gradient over all ranks in the backward pass; all of them must say the same.
        """
        config = self.config
        seconds: dict[str, float] = {}
        apart = isinstance(self.network, DistributedDataParallel) and not synchronise
        with self.network.no_sync() if apart else contextlib.nullcontext():  # type: ignore[operator]
            with self._timed("forward", seconds):
                self.optimizer.zero_grad(set_to_none=True)
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._mixed()):
                    output: Prediction = self.network(batch.images, batch.view_images)
                parts = {name: part for name, part in output._asdict().items() if part is not None}
                leaves = {name: part.detach().to(self.dtype).requires_grad_() for name, part in parts.items()}
            with self._timed("loss", seconds):
                loss_config = schedule.loss_at(config.loss, number, config.steps)
                progress = number / max(1, config.steps)
                if batch.keys:
                    found = Prediction(**leaves)
                    losses = objective(
                        found, batch, loss_config, config.pose, config.seed, number, progress, gather_rows
                    )
                    losses.total.backward()  # type: ignore[no-untyped-call]
                elif output.beliefs is not None:
                    gather_rows(output.beliefs.new_zeros(0, 2 * output.beliefs.shape[-1]).double())
            with self._timed("backward", seconds):
                roots = [parts[name] for name in parts]
                gradients = [_gradient(leaves[name]).to(parts[name].dtype) for name in parts]
                torch.autograd.backward(roots, gradients)
        with self._timed("optimizer", seconds):
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.gradient_clip or float("inf"))
            self.optimizer.step()
        return seconds

    def _mixed(self) -> bool:
        return self.config.precision == "bfloat16" or (self.config.precision == "auto" and self.device.type == "cuda")

    @contextlib.contextmanager
    def _timed(self, phase: str, seconds: dict[str, float]) -> Iterator[None]:
        start = self.clock()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds[phase] = self.clock() - start


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
