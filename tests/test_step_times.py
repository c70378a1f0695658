"""The step that is timed is the step that is trained, and moments keep to the layout of their weights."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine import layout, timing
from drwr_dist.engine.objective import objective
from drwr_dist.engine.step_times import StepTimer

CPU = torch.device("cpu")


def small() -> tuple[TrainConfig, Batch, int]:
    config = TrainConfig(global_batch=2, precision="float64", steps=10)
    config.model.points, config.model.channels, config.model.hidden = 200, 4, 16
    index = load_index(config.data.path)
    table = SampleTable.select(index, "train")
    stream = batches(table, table.plan(0, 2), config.data, config.loader, rank=0, world_size=1, start=0, stop=1)
    return config, next(iter(stream)).to(CPU, torch.float64), index.image_size


def test_the_timed_step_has_the_gradient_of_the_objective() -> None:
    config, batch, image_size = small()
    timer = StepTimer(config, image_size, CPU)
    prediction = timer.model.predict(batch.images)
    total = objective(prediction, batch, config.loss, config.pose, config.seed, 0, 0.0).total
    expected = torch.autograd.grad(total, list(timer.model.parameters()))
    config.optimizer.gradient_clip = 0.0
    seconds = timer.step(batch, 0)
    assert set(seconds) == {"forward", "loss", "backward", "optimizer"}
    assert all(value > 0 for value in seconds.values())
    for parameter, gradient in zip(timer.model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def exchange(rank: int, address: str, results: str) -> None:
    """A rank whose backward pass takes 0.1 s longer for rank 1: rank 0 has to wait for it in the all-reduce."""
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    timer = timing.StepTimer(CPU)
    timer.watch(network)
    wrapped = DistributedDataParallel(network)
    for _ in range(3):
        timer.begin()
        timer.sample(True)
        hidden = wrapped(torch.ones(2, 4)).sum()
        if rank:
            hidden.register_hook(lambda gradient: time.sleep(0.1))
        timer.lap("forward")
        hidden.backward()
        timer.lap("backward")
    Path(results, str(rank)).write_text(json.dumps(timer.close_interval()))
    dist.destroy_process_group()


def test_waiting_in_the_all_reduce_is_not_taken_for_the_backward_pass(tmp_path: Path) -> None:
    mp.start_processes(exchange, args=(f"file://{tmp_path}/meet", str(tmp_path)), nprocs=2, start_method="spawn")
    fast, slow = (json.loads((tmp_path / rank).read_text()) for rank in "01")
    assert slow["seconds_backward"] > 0.1 and fast["seconds_all_reduce"] > 0.05
    assert fast["seconds_backward"] < 0.1 > slow["seconds_all_reduce"]


def test_moments_of_another_layout_are_laid_out_as_the_weights() -> None:
    """A checkpoint from before channels last goes on as if nothing had changed."""
    torch.manual_seed(0)
    networks = [nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)]
    networks[1].load_state_dict(networks[0].state_dict())
    layout.arrange(networks[1], CPU, torch.float32)
    optimizers = [torch.optim.AdamW(network.parameters(), fused=True) for network in networks]
    images = torch.rand(2, 3, 8, 8)

    def step(which: int) -> None:
        optimizers[which].zero_grad()
        networks[which](images).square().sum().backward()
        optimizers[which].step()

    step(0)
    step(0)
    networks[1].load_state_dict(networks[0].state_dict())
    layout.load_optimizer(optimizers[1], copy.deepcopy(optimizers[0].state_dict()))
    step(0)
    step(1)
    assert networks[1].weight.stride() != networks[0].weight.stride()
    torch.testing.assert_close(networks[1].weight, networks[0].weight)
