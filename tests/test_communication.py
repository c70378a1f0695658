"""What workers exchange, on real gloo processes: every choice against the arithmetic that it promises."""

from __future__ import annotations

import dataclasses
import functools
import json
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from runs import start, train, wait_for
from torch import Tensor
from toy import rows

from drwr_dist.config import TrainConfig, from_plain, to_plain
from drwr_dist.data.batch import Batch
from drwr_dist.data.index import load_index
from drwr_dist.data.plan import rank_slice
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine import communication, layout
from drwr_dist.engine.agreement import Tally
from drwr_dist.engine.passes import Passes
from drwr_dist.engine.timing import StepTimer
from drwr_dist.errors import UsageError
from drwr_dist.model import PointNetwork, build_network
from drwr_dist.validation import validate

CPU = torch.device("cpu")
STEPS = 6
BATCH = 5  # over two ranks: one has an object more


def configuration(**settings: Any) -> TrainConfig:
    config = TrainConfig(global_batch=BATCH, precision="float64", steps=STEPS)
    config.model.points, config.model.channels, config.model.hidden = 50, 2, 8
    config.optimizer.gradient_clip = 0.0
    config.communication = dataclasses.replace(config.communication, **settings)
    return config


@functools.cache
def global_batches() -> tuple[list[Batch], int, SampleTable]:
    config = configuration()
    index = load_index(config.data.path)
    table = SampleTable.select(index, config.data.split)
    plan = table.plan(0, BATCH)
    stream = batches(table, plan, config.data, config.loader, rank=0, world_size=1, start=0, stop=STEPS)
    return [batch.to(CPU, torch.float64) for batch in stream], index.image_size, table


class Side:
    """A rank, or a lone process: a network, an optimizer, and a step of each."""

    def __init__(self, config: TrainConfig, rank: int = 0, world_size: int = 1, sgd: bool = False):
        self.config, self.rank, self.world_size = config, rank, world_size
        self.batches, image_size, table = global_batches()
        torch.manual_seed(0)
        self.model: PointNetwork = build_network(config, image_size)
        layout.arrange(self.model, CPU, torch.float64)
        parameters = self.model.parameters()
        self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
        if sgd:
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        plan = table.plan(0, BATCH)
        self.passes = Passes(config, self.model, plan, CPU, world_size, StepTimer(CPU))

    def gradient(self, step: int) -> Tally:
        rows = rank_slice(range(BATCH), self.rank, self.world_size)
        tally = Tally()
        self.optimizer.zero_grad(set_to_none=True)
        self.passes.run(step, self.batches[step].select(slice(int(rows[0]), int(rows[-1]) + 1)), tally)
        return tally

    def train(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            self.gradient(step)
            self.optimizer.step()
            same = communication.same_weights(step + 1, STEPS, self.config.communication)
            if same and self.config.communication.average_every > 1:
                communication.average(self.model, self.optimizer)

    def numbers(self) -> dict[str, Tensor]:
        moments = {
            f"{name}.{kind}": value
            for name, parameter in self.model.named_parameters()
            for kind, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        return {name: value.detach().clone() for name, value in [*self.model.named_parameters(), *moments.items()]}

    def gradients(self) -> dict[str, Tensor]:
        return {name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def _rank(rank: int, folder: str, address: str) -> None:
    """Do everything that needs two processes, once; the tests look at what it leaves."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    found: dict[str, Any] = {}
    choices = {"plain": {}, "accumulate": {"accumulate": 2}, "bfloat16": {"compression": "bfloat16"}}
    for name, settings in (choices | {"static": {"static_graph": True}}).items():
        side = Side(configuration(**settings), rank, 2)
        for step in range(2):  # DDP arranges its buckets anew after the first one
            side.gradient(step)
        found[name] = side.gradients()
    local = configuration(average_every=3)
    side = Side(local, rank, 2)
    side.train(0, 3)
    found["averaged"] = side.numbers()
    state = {"model": side.model.state_dict(), "optimizer": side.optimizer.state_dict()}
    torch.save(state, Path(folder) / f"state-{rank}.pt")
    side.train(3, 5)
    found["apart"] = side.numbers()
    side.train(5, 6)
    found["undisturbed"] = side.numbers()
    dist.barrier()
    resumed = Side(local, rank, 2)
    state = torch.load(Path(folder) / "state-0.pt", weights_only=True)
    resumed.model.load_state_dict(state["model"])
    layout.load_optimizer(resumed.optimizer, state["optimizer"])
    resumed.train(3, 6)
    found["resumed"] = resumed.numbers()
    sgd = Side(configuration(average_every=7), rank, 2, sgd=True)
    for step in range(3):
        sgd.gradient(step)
        sgd.optimizer.step()
        communication.average(sgd.model, sgd.optimizer)
    found["sgd"] = sgd.numbers()
    if rank == 1:
        next(side.model.parameters()).register_hook(lambda gradient: gradient / 0.0)
    tally = side.gradient(0)
    found["not finite"] = (tally.not_finite, side.passes.suspects)
    torch.save(found, Path(folder) / f"found-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    mp.start_processes(_rank, args=(str(folder), address), nprocs=2, start_method="spawn")
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


def same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=tolerance, atol=tolerance * float(value.abs().max()))


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """The gradient of the whole batch of step 1, in one process and one pass."""
    side = Side(configuration())
    side.gradient(1)
    return side.gradients()


def test_accumulating_in_one_process_is_the_larger_batch(whole: dict[str, Tensor]) -> None:
    side = Side(configuration(accumulate=3))  # 5 objects: 2, 2 and 1
    tally, once = side.gradient(1), Side(configuration()).gradient(1)
    same(side.gradients(), whole)
    for field in dataclasses.fields(Tally):
        assert getattr(tally, field.name) == pytest.approx(getattr(once, field.name), rel=1e-12)


@pytest.mark.parametrize("choice", ["plain", "accumulate", "static"])
def test_gradients_over_two_ranks_are_those_of_the_whole_batch(
    ranks: list[dict[str, Any]], whole: dict[str, Tensor], choice: str
) -> None:
    for found in ranks:
        same(found[choice], whole)


def test_bfloat16_gradients_are_rounded_and_the_same_on_all_ranks(
    ranks: list[dict[str, Any]], whole: dict[str, Tensor]
) -> None:
    same(ranks[0]["bfloat16"], ranks[1]["bfloat16"], 0.0)
    for name, value in whole.items():
        error = (ranks[0]["bfloat16"][name] - value).norm() / value.norm()
        assert 1e-5 < error < 6e-3, (name, error)  # 8 bits: rounded twice or three times by at most 2**-9 of a number


def test_local_sgd_averages_weights_and_moments_of_ranks_that_stepped_alone(ranks: list[dict[str, Any]]) -> None:
    alone = []
    for rank in range(2):
        side = Side(configuration(), rank, 1)
        side.world_size = 2  # its part of the batch, and DDP's weight of it, without DDP
        side.passes.world_size = 2
        for step in range(3):
            side.gradient(step)
            side.optimizer.step()
        alone.append(side.numbers())
    expected = {name: (value + alone[1][name]) / 2 for name, value in alone[0].items()}
    assert max(float((value - alone[1][name]).abs().max()) for name, value in alone[0].items()) > 1e-5
    for found in ranks:
        same(found["averaged"], expected)


def test_averaging_after_every_step_of_sgd_is_ddp(ranks: list[dict[str, Any]]) -> None:
    side = Side(configuration(), sgd=True)
    side.train(0, 3)
    for found in ranks:
        same(found["sgd"], side.numbers())


def test_local_sgd_goes_on_exactly_from_what_rank_0_saved(ranks: list[dict[str, Any]]) -> None:
    assert any(not torch.equal(value, ranks[1]["apart"][name]) for name, value in ranks[0]["apart"].items())
    for found in ranks:
        same(found["resumed"], ranks[0]["undisturbed"], 0.0)


def test_a_gradient_of_one_rank_that_is_not_finite_is_told_before_anybody_steps(ranks: list[dict[str, Any]]) -> None:
    flags, suspects = zip(*(found["not finite"] for found in ranks), strict=True)
    batch = global_batches()[0][0]
    assert flags == (0.0, 1.0) and suspects == ([], batch.keys[3:])


def test_ranks_agree_at_multiples_and_at_the_end() -> None:
    config = configuration(average_every=4).communication
    assert [step for step in range(1, 11) if communication.same_weights(step, 10, config)] == [4, 8, 10]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        (["communication.accumulate=0"], ["communication.accumulate=0"]),
        (["communication.compression=float8"], ["communication.compression=float8", "bfloat16"]),
        (["communication.average_every=0"], ["communication.average_every=0"]),
        (["communication.average_every=16"], ["checkpoint.every=200", "checkpoint.every=208"]),
        (["communication.average_every=8", "validation.every=12"], ["validation.every=12", "validation.every=16"]),
        (["communication.average_every=8", "communication.compression=bfloat16"], ["communication.compression"]),
        (["communication.average_every=8", "communication.static_graph=true"], ["communication.static_graph"]),
        (["communication.accumulate=2", "communication.static_graph=true"], ["communication.accumulate=1"]),
        (["communication.accumulate=2", "pose.mode=predict"], ["pose.proposals=search"]),
    ],
)
def test_combinations_that_can_not_work_name_the_key(settings: list[str], names: list[str]) -> None:
    plain = to_plain(TrainConfig())
    for setting in settings:
        key, value = setting.split("=")
        group, field = key.split(".")
        plain[group][field] = json.loads(value) if value[0] in "0123456789tf" and value != "float8" else value
    with pytest.raises(UsageError) as error:
        validate(from_plain(plain))
    for name in names:
        assert name in str(error.value)


def test_what_goes_together_is_let_through() -> None:
    config = TrainConfig(steps=150)  # shorter than checkpoint.every: saved at the end alone
    config.communication.average_every, config.communication.accumulate = 16, 2
    validate(config)


@pytest.mark.slow
def test_local_sgd_is_stopped_where_the_workers_agree_and_goes_on_exactly(
    toy_dataset: Path, tmp_path: Path, joins_ray: str
) -> None:
    """SIGTERM between two averages, with accumulation: the curve is that of an undisturbed run, digit for digit."""
    settings = (
        "workers=2", "precision=float64", "communication.average_every=20", "communication.accumulate=2",
        "checkpoint.every=20", "steps=210", "evaluation.split=",
    )  # fmt: skip
    process = start(toy_dataset, tmp_path, "name=stopped", *settings)
    wait_for((tmp_path / "stopped/checkpoints/step-00000020").exists, process, timeout=400)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, (out, err)
    step = int(out.split("interrupted after step ")[1].split(";")[0])
    assert step % 20 == 0 and (tmp_path / "stopped" / "checkpoints" / f"step-{step:08d}").exists()
    for name in ("stopped", "whole"):
        done = train(toy_dataset, tmp_path, f"name={name}", *settings, joins_ray)
        assert done.returncode == 0, done.stderr
    one, other = rows(tmp_path / "stopped"), rows(tmp_path / "whole")
    assert [row["loss"] for row in one] == [row["loss"] for row in other]
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step-00000210" / "state.pt") for name in ("stopped", "whole")
    ]
    same(states[0]["model"], states[1]["model"], 0.0)
