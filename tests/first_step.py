"""Step 0 of a training, without Ray: its loss and gradient on a device."""

from __future__ import annotations

import torch
from torch import Tensor

from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine import layout
from drwr_dist.engine.agreement import Tally
from drwr_dist.engine.passes import Passes
from drwr_dist.engine.timing import StepTimer
from drwr_dist.model import build_network

CPU = torch.device("cpu")


def passes(device: torch.device = CPU, **settings: object) -> tuple[Passes, Batch]:
    config = TrainConfig(global_batch=8, steps=10, **settings)  # type: ignore[arg-type]
    config.model.points, config.model.channels, config.model.hidden = 500, 8, 64
    index = load_index(config.data.path)
    table = SampleTable.select(index, config.data.split)
    plan = table.plan(0, 8)
    stream = batches(table, plan, config.data, config.loader, rank=0, world_size=1, start=0, stop=1)
    torch.manual_seed(0)
    model = build_network(config, index.image_size)
    layout.arrange(model, device, torch.float32)
    batch = next(iter(stream)).to(device, torch.float32)
    return Passes(config, model, plan, device, 1, StepTimer(device)), batch


def gradient(made: Passes, batch: Batch) -> tuple[float, Tensor]:
    """Return the loss and the whole gradient of step 0."""
    made.model.zero_grad()
    tally = Tally()
    made.run(0, batch, tally)
    return tally.loss, torch.cat([parameter.grad.flatten() for parameter in made.model.parameters()])
