"""The forward and backward passes of one rank's part of a step, and what they say about it."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

from drwr_dist.config import LossConfig, TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.plan import Plan
from drwr_dist.engine import communication, compiling, schedule
from drwr_dist.engine.agreement import Tally, gather_rows
from drwr_dist.engine.objective import not_finite_keys, objective
from drwr_dist.engine.timing import StepTimer
from drwr_dist.model import AllHeads, PointNetwork, Prediction


class Passes:
    """A network, wrapped for DDP where there are other ranks, and the gradient of the global batch's mean loss."""

    def __init__(
        self,
        config: TrainConfig,
        model: PointNetwork,
        plan: Plan,
        device: torch.device,
        world_size: int,
        timer: StepTimer,
    ):
        self.config, self.model, self.plan, self.timer = config, model, plan, timer
        self.device, self.world_size = device, world_size
        self.dtype = next(model.parameters()).dtype
        network = AllHeads(model)
        self.network: nn.Module = (
            communication.distributed(network, device, config.communication) if world_size > 1 else network
        )
        self.fast = compiling.compiled(self.network, config.compile)
        self.finished = 0.0  # when this rank's own work was done, by time.perf_counter; DDP waits for the slowest
        self.suspects: list[str] = []  # samples of the last step whose loss or gradient is not finite

    def run(self, step: int, batch: Batch, tally: Tally) -> None:
        """Leave the gradient in the parameters, and add this rank's losses to `tally`.

        Args:
            step: from 0.
            batch: this rank's part of the step's global batch; it may be empty.
            tally: of this rank; `samples`, the losses and `not_finite` are set.
        """
        loss_config = schedule.loss_at(self.config.loss, step, self.config.steps)
        self.suspects = []
        parts = communication.parts(batch, self.config.communication.accumulate)
        alone = self.config.communication.average_every > 1
        for number, part in enumerate(parts, 1):
            with communication.exchanging(self.network, number == len(parts) and not alone):
                self._pass(step, part, loss_config, tally)
        if alone and self.world_size > 1 and not self._gradient_is_finite():
            self.suspects = self.suspects or list(batch.keys)
        tally.not_finite = float(bool(self.suspects))

    def _pass(self, step: int, batch: Batch, loss_config: LossConfig, tally: Tally) -> None:
        """Make a forward and a backward pass."""
        prediction = self._predict(batch)
        self.timer.lap("forward")
        self.finished = time.perf_counter()
        if not batch.keys:
            if prediction.beliefs is not None:
                gather_rows(prediction.beliefs.new_zeros(0, 2 * prediction.beliefs.shape[-1]).double())
            torch.autograd.backward(prediction.nothing())  # takes part in the all-reduce with a zero gradient
            self.timer.lap("backward")
            return
        progress = step / max(1, self.config.steps)
        losses = objective(
            prediction, batch, loss_config, self.config.pose, self.config.seed, step, progress, gather_rows
        )
        # Seen here, because after DDP's average nobody could say whose gradient is not finite.
        point_gradients: list[Tensor] = []
        prediction.points.register_hook(lambda gradient: point_gradients.append(gradient.detach()))  # type: ignore[no-untyped-call]
        self.timer.lap("loss")
        # DDP averages over ranks; this weight makes that the mean over the samples of the global batch.
        planned = self.plan.batch_size(step)
        torch.autograd.backward(losses.total * (len(batch.keys) * self.world_size / planned))
        self.timer.lap("backward")
        tally.samples += len(batch.keys)
        tally.loss += float(losses.total.detach()) * len(batch.keys)
        for name, value in losses.terms.items():
            setattr(tally, name, getattr(tally, name) + float(value.detach()) * len(batch.keys))
        if not torch.isfinite(losses.total):
            self.suspects += not_finite_keys(prediction, batch, loss_config, self.config.pose)
        elif point_gradients and not (sound := point_gradients[0].flatten(1).isfinite().all(1)).all():
            self.suspects += [key for key, good in zip(batch.keys, sound.tolist(), strict=True) if not good]

    def _predict(self, batch: Batch) -> Prediction:
        mixed = self.config.precision in ("auto", "bfloat16") and self.device.type == "cuda"
        mixed = mixed or self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            network = self.fast if batch.keys else self.network  # nothing is compiled for no image at all
            compiling.begin_pass(self.config.compile)
            prediction: Prediction = network(batch.images, batch.view_images)
        return prediction.to(self.dtype)  # the losses need float32: pixel coordinates have more than 8 bits

    def _gradient_is_finite(self) -> bool:
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        return bool(torch.nn.utils.get_total_norm(gradients).isfinite())
