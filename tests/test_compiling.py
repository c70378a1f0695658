"""torch.compile and bfloat16 against the network as it is, in float32: the same numbers, within stated bounds."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from first_step import CPU, gradient, passes

from drwr_dist.config import CommunicationConfig, TrainConfig
from drwr_dist.engine import communication, compiling
from drwr_dist.engine.nodes import check_compile
from drwr_dist.errors import UsageError
from drwr_dist.model import AllHeads
from drwr_dist.validation import validate

needs_compiler = pytest.mark.skipif(not compiling.has_compiler(), reason="no C++ compiler: install g++")


def test_bfloat16_keeps_the_loss_and_the_direction_of_the_gradient() -> None:
    exact, rounded = gradient(*passes(precision="float32")), gradient(*passes(precision="bfloat16"))
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3)
    assert rounded[1].dtype == torch.float32
    assert torch.cosine_similarity(rounded[1], exact[1], dim=0) > 0.98


@needs_compiler
@pytest.mark.slow
def test_the_compiled_network_has_the_same_loss_and_gradient() -> None:
    """Whole batches, the shorter one at the end of an epoch, and one without an object."""
    (plain, batch), (fast, _) = passes(precision="float32"), passes(precision="float32", compile="inductor")
    for size in (8, 5, 8):
        part = batch.select(slice(0, size))
        expected, found = gradient(plain, part), gradient(fast, part)
        assert found[0] == pytest.approx(expected[0], rel=1e-5)
        assert (found[1] - expected[1]).norm() < 1e-4 * expected[1].norm()
    assert gradient(fast, batch.select(slice(0, 0)))[1].abs().max() == 0
    assert list(fast.model.state_dict()) == list(plain.model.state_dict())  # a checkpoint knows nothing of it


def _rank(rank: int, address: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    made, batch = passes(precision="float32")
    network = communication.distributed(AllHeads(made.model), CPU, CommunicationConfig(compression="bfloat16"))
    found = []
    for choice in ("none", "inductor"):
        made.model.zero_grad()
        fast = compiling.compiled(network, choice)
        for number in range(2):  # two passes, one exchange
            images = batch.images[4 * rank + 2 * number :][:2]
            with communication.exchanging(network, number == 1):
                fast(images, None).points.square().sum().backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in made.model.parameters()]).clone())
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@needs_compiler
@pytest.mark.slow
def test_compiled_over_two_ranks_with_accumulation_and_bfloat16_gradients(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    mp.start_processes(_rank, args=(address, str(tmp_path)), nprocs=2, start_method="spawn")
    (plain, fast), (_, other) = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(fast, other)
    assert (fast - plain).norm() < 1e-3 * plain.norm()  # a few numbers are rounded to the other side


def test_cuda_graphs_without_a_gpu_are_refused() -> None:
    config = TrainConfig(compile="cuda_graphs")
    validate(config)  # the cluster may have GPUs
    config.cluster.gpus_per_worker = 0
    with pytest.raises(UsageError, match=r"compile=cuda_graphs.*gpus_per_worker=0"):
        validate(config)
    with pytest.raises(UsageError, match=r"compile=cuda_graphs.*no GPU"):
        check_compile("cuda_graphs", gpus=False)
    assert "compile=inductor" in str(compiling.trouble("cuda_graphs", CPU))


def test_a_machine_without_a_compiler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    assert compiling.has_compiler() == bool(shutil.which("g++") or shutil.which("clang++"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not compiling.has_compiler()
