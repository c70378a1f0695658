"""One DDP worker: the network, its optimizer, its part of the stream, and the steps of the loop as verbs."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.v2.api.report_config import CheckpointUploadMode
from torch.nn.parallel import DistributedDataParallel

from drwr_dist.camera import world_to_camera_from_quaternion
from drwr_dist.config import LossConfig, PoseConfig, TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import Batch, SampleTable, batches
from drwr_dist.engine import checkpoint, schedule
from drwr_dist.engine.agreement import Tally, agree, fail_together
from drwr_dist.engine.board import Courier
from drwr_dist.engine.initial_weights import initial_weights
from drwr_dist.engine.stragglers import Stragglers
from drwr_dist.errors import TrainingError
from drwr_dist.losses.draws import random_quaternions
from drwr_dist.losses.hindsight import hindsight_loss
from drwr_dist.losses.training import TrainingLoss, Views, active_terms, training_loss
from drwr_dist.model import AllHeads, Prediction, build_network
from drwr_dist.monitor import Monitor


class Worker:
    """State of one rank. Every method that communicates is called by all ranks at the same step."""

    def __init__(self, config: TrainConfig, board: Any):
        context = ray.train.get_context()
        self.config = config
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.run = Path(config.storage) / config.name

        index = load_index(config.data.path)
        self.table = SampleTable.select(index, config.data.split, config.data.categories)
        self.plan = self.table.plan(config.seed, config.global_batch)

        torch.manual_seed(config.seed)
        self.model = build_network(config, index.image_size).to(self.device, self.dtype)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, weight_decay=config.optimizer.weight_decay, fused=True
        )
        self.courier = Courier(board) if self.rank == 0 else None
        self.start, self.skipped = self._restore()
        self.network = self._distributed()
        self.monitor = Monitor(self.run, self.start) if self.rank == 0 else None
        self.stragglers = Stragglers(self._names())
        self._terms = active_terms(config.loss) + (["student"] if config.pose.mode == "predict" else [])
        self._clock = (time.perf_counter(), 0.0)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.monitor:
            self.monitor.__exit__(kind, error, trace)
        if self.courier:
            self.courier.close()

    def _names(self) -> list[str]:
        names = [f"rank {self.rank} on {socket.gethostname()}, process {os.getpid()}"]
        if self.world_size > 1:
            names *= self.world_size
            dist.all_gather_object(names, names[0])
        return names

    def _distributed(self) -> torch.nn.Module:
        network = AllHeads(self.model)
        if self.world_size == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)

    def _restore(self) -> tuple[int, int]:
        """Load the newest sound checkpoint, if there is one; return (steps done, samples skipped so far)."""
        loaded = checkpoint.load_newest(self.run)
        if loaded is None:
            if self.config.init is not None:
                self.model.load_state_dict(initial_weights(self.config.init, self.config, self.model.image_size))
            return 0, 0
        self.model.load_state_dict(loaded.state["model"])
        self.optimizer.load_state_dict(loaded.state["optimizer"])
        torch.set_rng_state(loaded.state["random"])
        if self.courier:
            for damage in loaded.damaged:
                self.courier.notice(f"passed over a damaged checkpoint: {damage}")
            self.courier.notice(f"resuming after step {loaded.step} from {loaded.path}")
        return loaded.step, int(loaded.state["skipped"])

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (step, this rank's part of its global batch) from where the run stands to its last step."""
        stream = batches(
            self.table,
            self.plan,
            self.config.data,
            self.config.loader,
            rank=self.rank,
            world_size=self.world_size,
            start=self.start,
            stop=self.config.steps,
            view_images=self.config.pose.mode == "predict",
        )
        self._begin = time.perf_counter()
        for step, batch in enumerate(stream, self.start):
            yield step, batch.to(self.device, self.dtype)
            self._begin = time.perf_counter()

    def forward_backward(self, step: int, batch: Batch) -> Tally:
        """Compute this rank's losses and, through DDP, the gradient of the global batch's mean loss."""
        loss_config = schedule.loss_at(self.config.loss, step, self.config.steps)
        self.optimizer.zero_grad(set_to_none=True)
        prediction = self._predict(batch)
        tally = self._tally_of(batch)
        self._busy = time.perf_counter() - self._begin  # from here on, DDP waits for the slowest rank
        if not batch.keys:
            torch.autograd.backward(prediction.nothing())  # takes part in the all-reduce with a zero gradient
            return tally
        losses = objective(prediction, batch, loss_config, self.config.pose, self.config.seed, step)
        # DDP averages over ranks; this weight makes that the mean over the samples of the global batch.
        planned = self.plan.batch_size(step)
        torch.autograd.backward(losses.total * (len(batch.keys) * self.world_size / planned))
        tally.samples = len(batch.keys)
        tally.loss = float(losses.total.detach()) * tally.samples
        for name, value in losses.terms.items():
            setattr(tally, name, float(value.detach()) * tally.samples)
        if not torch.isfinite(losses.total):
            tally.not_finite = 1.0
            self._suspects = not_finite_keys(prediction, batch, loss_config, self.config.pose)
        return tally

    def _predict(self, batch: Batch) -> Prediction:
        mixed = self.config.precision in ("auto", "bfloat16") and self.device.type == "cuda"
        mixed = mixed or self.config.precision == "bfloat16"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=mixed):
            prediction: Prediction = self.network(batch.images, batch.view_images)
        return prediction.to(self.dtype)  # the losses need float32: pixel coordinates have more than 8 bits

    def _tally_of(self, batch: Batch) -> Tally:
        bad = float(len(batch.failures))
        skip = self.config.data.on_bad_sample == "skip"
        stop = self.courier is not None and self.courier.stop_requested
        return Tally(skipped=bad if skip else 0.0, failed=0.0 if skip else bad, stop=float(stop))

    def agree(self, step: int, batch: Batch, tally: Tally) -> Tally:
        """Sum the tally over all ranks; raise TrainingError on all of them where the step must not be made."""
        total, busy = agree(tally, self._busy, self.device)
        self.stragglers.add(busy)
        if total.failed:
            fail_together(batch.failures[0].reason if batch.failures else None)
        if total.not_finite:
            suspects = ", ".join(self._suspects) if tally.not_finite else ""
            fail_together(
                f"step {step}: the loss is not finite on rank {self.rank} (samples {suspects}); lower "
                "optimizer.learning_rate or look at these samples with `shards verify`"
                if suspects
                else None
            )
        self.skipped += int(total.skipped)
        self._limit_skips(step)
        return total

    def _limit_skips(self, step: int) -> None:
        seen = min(step + 1, self.config.steps) * self.config.global_batch
        allowed = max(self.config.data.max_skip_fraction * seen, self.config.data.max_skip_fraction * self.plan.samples)
        if self.skipped > allowed:
            raise TrainingError(
                f"step {step}: {self.skipped} samples were skipped, more than data.max_skip_fraction="
                f"{self.config.data.max_skip_fraction} allows; run `shards verify data={self.config.data.path}`"
            )

    def update(self, step: int) -> float:
        """Clip the gradient, set the learning rate, step the optimizer; return the gradient's norm."""
        clip = self.config.optimizer.gradient_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if not torch.isfinite(norm):  # the same on all ranks: the gradient is already averaged
            raise TrainingError(f"step {step}: the gradient is not finite; lower optimizer.learning_rate")
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.learning_rate(self.config.optimizer, step, self.config.steps)
        self.optimizer.step()
        return float(norm)

    def log(self, step: int, total: Tally, gradient_norm: float) -> None:
        """Show the progress; every `log_every` steps, and at the last one, write a row of the history."""
        done, samples = step + 1, max(1.0, total.samples)
        if not (self.monitor and self.courier):
            return
        if due := done % self.config.log_every == 0 or done == self.config.steps:
            wait, notice = self.stragglers.close_interval()
            if notice:
                self.courier.notice(notice)
        since, count = self._clock
        elapsed, count = time.perf_counter() - since, count + total.samples
        row = {
            "epoch": self.plan.epoch_of(step),
            "loss": total.loss / samples,
            **{name: getattr(total, name) / samples for name in self._terms},
            "repulsion_weight": schedule.repulsion_weight(self.config.loss, step, self.config.steps),
            "learning_rate": schedule.learning_rate(self.config.optimizer, step, self.config.steps),
            "gradient_norm": gradient_norm,
            "samples_per_second": count / max(elapsed, 1e-9),
            "skipped": self.skipped,
        }
        self.courier.progress(step=done, **row)
        self._clock = (since, count)
        if due:
            self.monitor.log(done, row | {"straggler_seconds": wait})
            self._clock = (time.perf_counter(), 0.0)

    def save(self, steps_done: int) -> None:
        """Write a checkpoint (rank 0) and report it to Ray (all ranks)."""
        problem, path = None, None
        if self.rank == 0:
            try:
                path = checkpoint.write(self.run, steps_done, self._state(), {"seed": self.config.seed})
                checkpoint.prune(self.run, self.config.checkpoint.keep)
            except TrainingError as error:
                problem = str(error)
        fail_together(problem)
        ray.train.report(
            {"step": steps_done},
            checkpoint=ray.train.Checkpoint(str(path)) if path else None,
            checkpoint_dir_name=f"{checkpoint.FOLDER}/step-{steps_done:08d}",
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "skipped": self.skipped,
        }

    def describe(self, config_yaml: str) -> None:
        """Write the resolved configuration to TensorBoard (rank 0, once)."""
        if self.monitor and self.start == 0:
            self.monitor.text("config", config_yaml)


def objective(
    prediction: Prediction, batch: Batch, config: LossConfig, pose: PoseConfig, seed: int = 0, step: int = 0
) -> TrainingLoss:
    """Evaluate the loss of a batch: predictions against its silhouettes, under the cameras that `pose` says."""
    views = Views(batch.world_to_camera, batch.masks, batch.smooth, batch.focal_length, batch.view_mask)
    if pose.mode == "predict":
        assert prediction.candidates is not None and prediction.student is not None
        proposed = (prediction.candidates, prediction.student)
        return hindsight_loss(
            prediction.points, *proposed, views, config, pose.student_weight,
            scale=prediction.scale, keys=batch.keys, seed=seed, step=step,
        )  # fmt: skip
    if pose.mode == "random":
        quaternions = random_quaternions(batch.keys, batch.masks.shape[1], seed, step).to(batch.masks)
        views = views._replace(world_to_camera=world_to_camera_from_quaternion(quaternions))
    return training_loss(
        prediction.points, views, config, scale=prediction.scale, keys=batch.keys, seed=seed, step=step
    )


@torch.no_grad()
def not_finite_keys(prediction: Prediction, batch: Batch, config: LossConfig, pose: PoseConfig) -> list[str]:
    """Return the keys of the samples whose own loss is not finite (all keys, where it is only their sum)."""
    suspects = []
    for row, key in enumerate(batch.keys):
        part = slice(row, row + 1)
        own, alone = prediction.select(part), batch.select(part)
        if not torch.isfinite(objective(own, alone, config, pose).total):
            suspects.append(key)
    return suspects or list(batch.keys)
