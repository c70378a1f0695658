"""What a GPU computes is what the CPU computes. Run where there is a GPU, skipped elsewhere."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from first_step import gradient, passes
from torch import Tensor
from toy import REPOSITORY, SMALL_RUN, drwr, rows

from drwr_dist.camera import world_to_camera_from_position
from drwr_dist.config import CommunicationConfig, LossConfig
from drwr_dist.engine import communication, compiling
from drwr_dist.losses import drwr_loss, training_loss
from drwr_dist.losses.training import Views
from drwr_dist.metrics import chamfer_distance, f_score, silhouette_iou
from drwr_dist.model import AllHeads
from drwr_dist.run import load_run

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(300),
]
GPU = torch.device("cuda")
F64 = torch.float64
OBJECTS, VIEWS, POINTS, SIDE = 3, 4, 700, 64


def scene(dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor]:
    """Return points, cameras and silhouettes; some points are outside of some, one is outside of every frame."""
    points = (torch.rand(OBJECTS, POINTS, 3, dtype=F64) - 0.5) * torch.tensor([0.9, 0.5, 0.7], dtype=F64)
    points[0, 0] = torch.tensor([0.0, 5.0, 0.0])
    cameras = world_to_camera_from_position(torch.randn(OBJECTS, VIEWS, 3, dtype=F64))
    place = (torch.arange(SIDE, dtype=F64) + 0.5) / SIDE - 0.5
    radii = torch.rand(OBJECTS, VIEWS, 1, 1, dtype=F64) * 0.2 + 0.15
    masks = (place[:, None] ** 2 + 2 * place**2 < radii**2).to(F64)
    return points.to(dtype), cameras.to(dtype), masks.to(dtype)


def on(device: str, dtype: torch.dtype, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.clone().to(device, dtype) for tensor in tensors]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.cpu().double() - other.cpu().double()).norm() / other.cpu().double().norm())


@pytest.mark.parametrize(("dtype", "limit"), [(F64, 1e-9), (torch.float32, 2e-4)])
@pytest.mark.parametrize(
    ("semantics", "method"), [("default", "auto"), ("default", "plain"), ("released", "auto"), ("released", "fourier")]
)
def test_the_loss_and_its_gradient(semantics: str, method: str, dtype: torch.dtype, limit: float) -> None:
    found = []
    exact = scene()
    for device, precision in (("cpu", F64), ("cuda", dtype)):
        points, cameras, masks = on(device, precision, exact)
        points.requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):  # which must leave it alone
            loss = drwr_loss(points, cameras, masks, grid=32, semantics=semantics, method=method)
        loss.total.backward()
        assert points.grad is not None and loss.total.dtype == precision
        found.append((torch.stack(loss).detach(), points.grad))
    assert relative(found[1][0], found[0][0]) < limit
    # Of two points that are equally near to a place, rounding may choose either: some gradient goes to the other one.
    assert relative(found[1][1], found[0][1]) < (
        2e-2 if (semantics, dtype) == ("default", torch.float32) else 10 * limit
    )
    assert found[1][1].isfinite().all()


def test_every_term_of_training() -> None:
    config = LossConfig(
        grid=32, unary_weight=1, repulsion_weight=1, coverage_weight=1, crowding_weight=1, volumetric_weight=0.01,
        sum_weight=0.1, entropy_weight=0.1, chamfer_2d_weight=0.1, keep_points=0.8,
    )  # fmt: skip
    exact, scale, found = scene(), torch.rand(OBJECTS, dtype=F64), []
    for device in ("cpu", "cuda"):
        points, cameras, masks, scales = on(device, F64, (*exact, scale))
        points.requires_grad_()
        loss = training_loss(points, Views(cameras, masks), config, scale=scales, keys=["a", "b", "c"], seed=1, step=2)
        loss.total.backward()
        assert points.grad is not None
        found.append(({name: float(term.detach()) for name, term in loss.terms.items()}, points.grad))
    assert set(found[0][0]) >= {"unary", "repulsion", "coverage", "crowding", "volumetric", "sum", "entropy"}
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-7)
    assert relative(found[1][1], found[0][1]) < 1e-6


def test_metrics() -> None:
    one, other = torch.rand(500, 3, dtype=F64), torch.rand(900, 3, dtype=F64)
    mask, xy = (torch.rand(SIDE, SIDE) < 0.5).float(), torch.rand(500, 2)
    for here, there in zip(chamfer_distance(one, other), chamfer_distance(one.to(GPU), other.to(GPU)), strict=True):
        assert there.item() == pytest.approx(here.item(), rel=1e-9)
    assert f_score(one.to(GPU), other.to(GPU), 0.05).item() == f_score(one, other, 0.05).item()
    assert silhouette_iou(xy.to(GPU), mask.to(GPU)).item() == silhouette_iou(xy, mask).item()


def test_bfloat16_is_what_auto_means() -> None:
    exact, rounded, named = (gradient(*passes(GPU, precision=name)) for name in ("float32", "auto", "bfloat16"))
    assert rounded[0] == pytest.approx(exact[0], rel=5e-3) and rounded[0] != exact[0]
    assert rounded[1].dtype == torch.float32 and torch.cosine_similarity(rounded[1], exact[1], dim=0) > 0.98
    assert named[0] == pytest.approx(rounded[0], rel=1e-6)
    on_cpu = gradient(*passes(precision="float32"))
    assert exact[0] == pytest.approx(on_cpu[0], rel=1e-3)
    assert torch.cosine_similarity(exact[1].cpu(), on_cpu[1], dim=0) > 0.999


@pytest.mark.parametrize("choice", ["inductor", "cuda_graphs"])
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_the_compiled_network_has_the_same_loss_and_gradient(choice: str, precision: str) -> None:
    """Whole batches, the shorter one at the end of an epoch, one without an object; steps after the recording too."""
    assert compiling.trouble(choice, GPU) is None
    (plain, batch), (fast, _) = passes(GPU, precision=precision), passes(GPU, precision=precision, compile=choice)
    limit = 1e-2 if precision == "auto" else 2e-3  # convolutions of float32 may use TF32
    for size in (8, 8, 8, 5, 5, 5, 8):
        part = batch.select(slice(0, size))
        expected, found = gradient(plain, part), gradient(fast, part)
        assert found[0] == pytest.approx(expected[0], rel=limit), size
        assert torch.cosine_similarity(found[1], expected[1], dim=0) > 1 - limit, size
    assert gradient(fast, batch.select(slice(0, 0)))[1].abs().max() == 0


@pytest.fixture
def nccl() -> Iterator[None]:
    """A process group of one rank: NCCL gives each rank a GPU of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    dist.init_process_group("nccl", init_method=address, rank=0, world_size=1, device_id=torch.device("cuda", 0))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "settings", [{}, {"accumulate": 2}, {"compression": "bfloat16"}, {"static_graph": True}], ids=str
)
def test_ddp_over_nccl_has_the_gradient_of_no_ddp(nccl: None, settings: dict[str, object]) -> None:
    made, batch = passes(GPU, precision="float32")
    choices = CommunicationConfig(**settings)  # type: ignore[arg-type]
    network = communication.distributed(AllHeads(made.model), torch.device("cuda", 0), choices)
    for _ in range(2):  # DDP arranges its buckets anew after the first step
        found = []
        for each in (made.network, network):
            made.model.zero_grad()
            parts = communication.parts(batch, choices.accumulate)
            for number, part in enumerate(parts, 1):
                with communication.exchanging(each, number == len(parts)):
                    each(part.images, None).points.square().sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in made.model.parameters() if p.grad is not None]))
        assert (found[1] - found[0]).norm() < (1e-2 if "compression" in settings else 1e-4) * found[0].norm()


DEMO = (f"data={REPOSITORY / 'shards/demo'}", *SMALL_RUN, "workers=1", "evaluation.references=false")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps on the GPU, with everything that goes on beside the steps."""
    storage = tmp_path_factory.mktemp("runs")
    settings = ("steps=12", "checkpoint.every=6", "validation.every=6", "monitor.pictures_every=6")
    done = drwr("train", *DEMO, f"storage={storage}", "name=there", "precision=float32", *settings)
    assert done.returncode == 0, done.stderr
    assert "on CPUs" not in done.stdout
    return storage / "there"


def test_a_run_has_the_curve_of_the_cpu(trained: Path, tmp_path: Path) -> None:
    settings = ("steps=12", "precision=float32", "cluster.gpus_per_worker=0", "evaluation.split=")
    done = drwr("train", *DEMO, f"storage={tmp_path}", "name=here", *settings)
    assert done.returncode == 0, done.stderr
    there, here = rows(trained), rows(tmp_path / "here")
    assert all(row["gpu_memory_peak_gib"] > 0 for row in there) and "gpu_memory_peak_gib" not in here[0]
    assert [row["loss"] for row in there] == pytest.approx([row["loss"] for row in here], rel=5e-3)
    result = json.loads((trained / "result.json").read_text())
    assert result["splits"]["test"]["overall"]["chamfer"] > 0 and list(trained.glob("predictions/**/*.ply"))


def test_a_run_moves_between_gpu_and_cpu(trained: Path, tmp_path: Path) -> None:
    """From the CPU to the GPU, and a network of the GPU on the CPU: checkpoints know no device."""
    first = ("name=moving", "steps=8", "evaluation.split=", "cluster.gpus_per_worker=0")
    second = ("name=moving", "steps=16", "evaluation.split=")
    for settings, resumed in ((first, False), (second, True)):
        done = drwr("train", *DEMO, f"storage={tmp_path}", *settings)
        assert done.returncode == 0, done.stderr
        assert ("resuming after step" in done.stdout) == resumed, done.stdout
    history = rows(tmp_path / "moving")
    assert [row["step"] for row in history] == list(range(1, 17))
    assert "gpu_memory_peak_gib" in history[-1] and "gpu_memory_peak_gib" not in history[0]
    images = torch.rand(2, 3, 128, 128)
    model = load_run(trained).model
    with torch.no_grad():
        expected, found = model(images), model.to(GPU)(images.to(GPU))
    assert relative(found, expected) < 1e-2


def test_a_run_is_compiled(tmp_path: Path) -> None:
    settings = (
        "steps=30",
        "evaluation.split=",
        "compile=cuda_graphs",
    )  # longer than an epoch, whose last step is shorter
    done = drwr("train", *DEMO, f"storage={tmp_path}", "name=fast", *settings)
    assert done.returncode == 0, done.stderr
    history = rows(tmp_path / "fast")
    assert len(history) == 30 and history[-1]["loss"] < history[0]["loss"]


def test_poses_are_learned_there(tmp_path: Path) -> None:
    settings = ("steps=3", "model.points=200", "model.hidden=32", "loss.grid=32", "global_batch=4", "log_every=1")
    done = drwr(
        "train", f"config={REPOSITORY / 'configs/dpc-poses.yaml'}", f"data={REPOSITORY / 'shards/demo'}",
        f"storage={tmp_path}", "workers=1", *settings, "evaluation.references=false", "evaluation.predictions=false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "dpc-poses" / "result.json").exists()


def test_more_workers_than_gpus_are_told(tmp_path: Path) -> None:
    workers = torch.cuda.device_count() + 1
    settings = (f"workers={workers}", "steps=2", "evaluation.split=")
    done = drwr("train", *DEMO, f"storage={tmp_path}", "name=many", *settings)
    assert done.returncode == 0, done.stderr
    assert "training on CPUs" in done.stdout


def test_evaluate_with_processes_beside_it(trained: Path) -> None:
    results = []
    for workers in (1, 2):
        done = drwr("evaluate", f"run={trained}", "split=val", f"workers={workers}", "report=false")
        assert done.returncode == 0, done.stderr
        results.append(json.loads((trained / "result.json").read_text())["splits"]["val"]["overall"])
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_predict(tmp_path: Path) -> None:
    """In this process, and in Ray's tasks, which get no GPU: a few numbers differ in the last digits."""
    picture = REPOSITORY / "docs/images/demo.png"
    for workers in (1, 2):
        output = f"output={tmp_path / str(workers)}"
        done = drwr("predict", f"images={picture}", output, f"workers={workers}", "format=npz")
        assert done.returncode == 0, done.stderr
    found = [torch.from_numpy(np.load(tmp_path / name / "demo.npz")["points"]) for name in ("1", "2")]
    assert relative(*found) < 1e-2


def test_bench(tmp_path: Path) -> None:
    done = drwr("bench", *DEMO, "bench_steps=5", f"bench_output={tmp_path / 'bench.json'}")
    assert done.returncode == 0, done.stderr
    assert "on its GPU" in " ".join(done.stdout.split()), done.stdout


def test_trials_share_a_gpu(tmp_path: Path) -> None:
    space = {"optimizer.learning_rate": {"values": [3e-4, 1e-3]}}
    sweep = {"space": space, "search": "grid", "baseline": False, "categories": ["chair"], "report": False}
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump({"cluster": {"gpus_per_worker": 0.5}, "sweep": sweep}))
    done = drwr("tune", f"config={file}", *DEMO, f"storage={tmp_path}", "name=sweep", "steps=4")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "2 at the same time" in done.stdout
    for trial in ("001-chair", "002-chair"):
        assert "gpu_memory_peak_gib" in rows(tmp_path / "sweep" / "trials" / trial)[-1]


def test_launch_check_knows_the_gpus(tmp_path: Path) -> None:
    done = drwr("launch check", "address=local", f"storage={tmp_path}", f"data={REPOSITORY / 'shards/demo'}")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "GPU" in done.stdout
