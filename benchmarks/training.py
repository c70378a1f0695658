"""Training in one process, for benchmarks that compare many configurations: the steps of one worker, without Ray.

The stream, the objective, the schedules and the optimizer are those of `python -m drwr_dist.train`; checkpoints,
monitoring and DDP are left out, so that the CPU seconds of a step are the method's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine import layout, schedule
from drwr_dist.engine.objective import objective
from drwr_dist.model import AllHeads, PointNetwork, Prediction, build_network

CPU = torch.device("cpu")
After = Callable[[int, PointNetwork, float], None]  # steps done, network, CPU seconds spent on steps so far
Judge = Callable[[Prediction, Batch, int], Tensor]  # prediction, batch, step -> the loss, in place of the objective


def train_here(
    config: TrainConfig,
    samples: SampleTable,
    image_size: int,
    title: str,
    after: After | None = None,
    stream: Iterator[Batch] | None = None,
    judge: Judge | None = None,
) -> tuple[PointNetwork, float]:
    """Train a network in this process, in float32 on the CPU.

    Args:
        config: of the run; its workers, storage and cluster are not read.
        samples: what is trained on.
        image_size: pixels a side.
        title: what the lines on the terminal begin with.
        after: called after every step; what it takes is not counted.
        stream: the batches of its steps; None: those that `train` would have.
        judge: another loss than that of the configuration.

    Returns:
        The network, and the CPU seconds of a step: forward, loss, backward and update, without reading samples.
    """
    torch.manual_seed(config.seed)
    model = build_network(config, image_size)
    layout.arrange(model, CPU, torch.float32)
    network = AllHeads(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=config.optimizer.weight_decay, fused=True)
    if stream is None:
        plan = samples.plan(config.seed, config.global_batch)
        stream = batches(samples, plan, config.data, config.loader, rank=0, world_size=1, start=0, stop=config.steps)
    spent = 0.0
    for step, batch in enumerate(stream):
        began = time.process_time()
        total = train_step(config, network, optimizer, batch.to(CPU, torch.float32), step, judge)
        spent += time.process_time() - began
        if (step + 1) % 100 == 0:
            print(f"{title} {step + 1}/{config.steps}: loss {total:.4f}, {spent / (step + 1):.3f} CPU s", flush=True)
        if after:
            after(step + 1, model, spent)
    return model, spent / max(1, config.steps)


def train_step(
    config: TrainConfig,
    network: AllHeads,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    judge: Judge | None = None,
) -> float:
    """Make one optimizer step; return the loss before it."""
    optimizer.zero_grad(set_to_none=True)
    prediction = network(batch.images, batch.view_images)
    total = judge(prediction, batch, step) if judge else loss_of(config, prediction, batch, step)
    total.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), config.optimizer.gradient_clip or float("inf"))
    for group in optimizer.param_groups:
        group["lr"] = schedule.learning_rate(config.optimizer, step, config.steps)
    optimizer.step()
    return float(total.detach())


def loss_of(config: TrainConfig, prediction: Prediction, batch: Batch, step: int) -> Tensor:
    """Evaluate the loss of the configuration, as `train` does."""
    loss_config = schedule.loss_at(config.loss, step, config.steps)
    progress = step / max(1, config.steps)
    return objective(prediction, batch, loss_config, config.pose, config.seed, step, progress).total
