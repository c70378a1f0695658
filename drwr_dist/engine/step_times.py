"""Where the time of a training step goes: the step of `engine/worker`, phase by phase, with a clock of one's choice."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.engine import communication, compiling, layout, schedule
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
            self.network = communication.distributed(self.network, device, config.communication)
        self.fast = compiling.compiled(self.network, config.compile)

    def step(self, batch: Batch, number: int, synchronise: bool = True) -> dict[str, float]:
        """Make one step; return the seconds of each phase but the data wait and the all-reduce.

        Args:
            batch: of this rank, on the device.
            number: of the step, for the schedules.
            synchronise: average the gradient over all ranks in the backward pass; all of them must say the same.
        """
        seconds: dict[str, float] = {}
        with self._timed("forward", seconds):
            self.optimizer.zero_grad(set_to_none=True)
        parts = communication.parts(batch, self.config.communication.accumulate)
        for place, part in enumerate(parts, 1):
            with communication.exchanging(self.network, synchronise and place == len(parts)):
                self._pass(part, number, len(part.keys) / max(1, len(batch.keys)), seconds)
        with self._timed("optimizer", seconds):
            clip = self.config.optimizer.gradient_clip or float("inf")
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
            self.optimizer.step()
        return seconds

    def _pass(self, batch: Batch, number: int, share: float, seconds: dict[str, float]) -> None:
        """Make a forward and a backward pass of a share of the rank's batch."""
        config = self.config
        with self._timed("forward", seconds):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._mixed()):
                network = self.fast if batch.keys else self.network
                compiling.begin_pass(config.compile)
                output: Prediction = network(batch.images, batch.view_images)
            parts = {name: part for name, part in output._asdict().items() if part is not None}
            leaves = {name: part.detach().to(self.dtype).requires_grad_() for name, part in parts.items()}
        with self._timed("loss", seconds):
            loss_config = schedule.loss_at(config.loss, number, config.steps)
            progress = number / max(1, config.steps)
            if batch.keys:
                found = Prediction(**leaves)
                losses = objective(found, batch, loss_config, config.pose, config.seed, number, progress, gather_rows)
                torch.autograd.backward(losses.total * share)
            elif output.beliefs is not None:
                gather_rows(output.beliefs.new_zeros(0, 2 * output.beliefs.shape[-1]).double())
        with self._timed("backward", seconds):
            roots = [parts[name] for name in parts]
            gradients = [_gradient(leaves[name]).to(parts[name].dtype) for name in parts]
            torch.autograd.backward(roots, gradients)

    def _mixed(self) -> bool:
        return self.config.precision == "bfloat16" or (self.config.precision == "auto" and self.device.type == "cuda")

    @contextlib.contextmanager
    def _timed(self, phase: str, seconds: dict[str, float]) -> Iterator[None]:
        start = self.clock()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds[phase] = seconds.get(phase, 0.0) + self.clock() - start


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
