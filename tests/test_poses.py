"""Unknown cameras: the hindsight loss, the student, the predicted frame and the errors of its cameras."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from rich.console import Console
from shard_tools import make_balls
from torch import Tensor

from drwr_dist.camera import world_to_camera_from_quaternion
from drwr_dist.config import LoaderConfig, LossConfig, ModelConfig, PoseConfig, TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine.objective import objective
from drwr_dist.errors import UsageError
from drwr_dist.evaluate import EvaluateOptions, aligned, evaluate_run
from drwr_dist.losses.draws import random_quaternions
from drwr_dist.losses.hindsight import hindsight_loss, squared_half_sine
from drwr_dist.losses.training import Views, training_loss
from drwr_dist.model import AllHeads, build_network
from drwr_dist.poses import Rotations, alignment_of, alignments, angles, consensus, pose_metrics
from drwr_dist.run import TrainedRun
from drwr_dist.validation import validate

F64 = torch.float64
LOSS = LossConfig(semantics="released", grid=16, volumetric_weight=1.0, chamfer_2d_weight=1.0, chamfer_2d_draws=20)
KEYS = ["chair/a", "chair/b"]


def rotation(count: int) -> Tensor:
    return world_to_camera_from_quaternion(torch.randn(count, 4, dtype=F64))[:, :3, :3]


def scene(candidates: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return points [2, 30, 3], candidates [2, 3, K, 4], student [2, 3, 4] and masks [2, 3, 32, 32]."""
    masks = (torch.rand(2, 3, 32, 32, dtype=F64) < 0.3).to(F64)
    points = torch.rand(2, 30, 3, dtype=F64) * 0.8 - 0.4
    return points, torch.randn(2, 3, candidates, 4, dtype=F64), torch.randn(2, 3, 4, dtype=F64), masks


class TestHindsight:
    @pytest.mark.parametrize("semantics", ["default", "released"])
    def test_one_candidate_is_the_plain_loss_under_its_camera(self, semantics: str) -> None:
        points, candidates, student, masks = scene(1)
        config = LossConfig(semantics=semantics, grid=16, volumetric_weight=1.0)
        cameras = world_to_camera_from_quaternion(candidates[:, :, 0])
        plain = training_loss(points, Views(cameras, masks), config)
        result = hindsight_loss(points, candidates, student, Views(cameras * 0, masks), config, 2.0)
        for name, term in plain.terms.items():
            torch.testing.assert_close(result.terms[name], term)
        expected = squared_half_sine(candidates[:, :, 0], student).mean()
        torch.testing.assert_close(result.total, plain.total + 2 * expected)

    def test_each_view_takes_its_best_candidate(self) -> None:
        points, candidates, student, masks = scene(4)
        totals = torch.zeros(2, 3, 4, dtype=F64)
        for b in range(2):
            for v in range(3):
                for k in range(4):
                    camera = world_to_camera_from_quaternion(candidates[b : b + 1, v : v + 1, k])
                    config = LossConfig(semantics="released", grid=16, volumetric_weight=1.0)
                    alone = training_loss(points[b : b + 1], Views(camera, masks[b : b + 1, v : v + 1]), config)
                    totals[b, v, k] = alone.total
        result = hindsight_loss(points, candidates, student, Views(masks, masks), config, 1e-9)
        torch.testing.assert_close(result.total, totals.min(-1).values.mean(), atol=1e-7, rtol=0)
        best = totals.argmin(-1)
        teacher = candidates.gather(2, best[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        torch.testing.assert_close(result.terms["student"], squared_half_sine(teacher, student).mean())

    def test_losers_get_no_gradient_and_the_student_moves_nothing_but_itself(self) -> None:
        points, candidates, student, masks = scene(3)
        inputs = [tensor.requires_grad_() for tensor in (points, candidates, student)]
        result = hindsight_loss(*inputs, Views(masks, masks), LOSS, 20.0, keys=KEYS)
        gradients = torch.autograd.grad(result.total, inputs, retain_graph=True)
        moved = gradients[1].abs().sum(-1) > 0
        assert (moved.sum(-1) == 1).all(), "one winner for each view"
        assert all((gradient != 0).any() for gradient in gradients)
        of_student = torch.autograd.grad(result.terms["student"], inputs, allow_unused=True)
        assert of_student[0] is None and of_student[1] is None and (of_student[2] != 0).all()

    def test_views_that_are_not_there_count_for_nothing(self) -> None:
        points, candidates, student, masks = scene(2)
        present = torch.tensor([[True, True, False], [True, True, True]])
        result = hindsight_loss(points, candidates, student, Views(masks, masks, present=present), LOSS, 3.0, keys=KEYS)
        alone = []
        for row, views in ((slice(0, 1), 2), (slice(1, 2), 3)):
            part = (points[row], candidates[row, :views], student[row, :views])
            judges = Views(masks[row, :views], masks[row, :views])
            alone.append(hindsight_loss(*part, judges, LOSS, 3.0, keys=KEYS[row]))
        torch.testing.assert_close(result.total, (alone[0].total + alone[1].total) / 2)

    def test_the_half_sine(self) -> None:
        a = torch.tensor([1.0, 0, 0, 0], dtype=F64)
        turned = torch.tensor([torch.pi / 6, 0.5]).cos().double()  # 60 degrees about x, of any length and sign
        b = -3 * torch.tensor([turned[0], torch.sin(torch.tensor(torch.pi / 6)), 0, 0], dtype=F64)
        assert squared_half_sine(a, b).item() == pytest.approx(0.25, abs=1e-6)
        assert squared_half_sine(b, 7 * b).item() == pytest.approx(0, abs=1e-12)


class TestFrames:
    def test_angles(self) -> None:
        for degrees in (0.0, 1e-4, 30.0, 90.0, 179.0, 180.0):
            half = torch.deg2rad(torch.tensor(degrees / 2, dtype=F64))
            turn = torch.stack((half.cos(), half.sin(), half * 0, half * 0))
            a, b = (world_to_camera_from_quaternion(q)[:3, :3] for q in (torch.eye(4, dtype=F64)[0], turn))
            assert angles(a, b).item() == pytest.approx(degrees, abs=1e-5)

    def test_consensus_ignores_outliers(self) -> None:
        truth = rotation(1)[0]
        small = torch.cat((torch.ones(60, 1, dtype=F64), torch.randn(60, 3, dtype=F64) * 0.05), 1)
        turns = world_to_camera_from_quaternion(small)[:, :3, :3] @ world_to_camera_from_quaternion(
            torch.eye(4, dtype=F64)[0]
        )[:3, :3].mT  # fmt: skip
        proposals = torch.cat((turns @ truth, rotation(80)))
        found = consensus(proposals)
        assert angles(found, truth) < 4
        assert torch.linalg.det(found).item() == pytest.approx(1)

    def test_consensus_of_very_many(self) -> None:
        truth = rotation(1)[0]
        proposals = torch.cat((truth.expand(3000, 3, 3), rotation(9000)))[torch.randperm(12_000)]
        assert angles(consensus(proposals), truth) < 4

    def test_the_median_of_an_even_number_lies_in_the_middle(self) -> None:
        half = torch.deg2rad(torch.tensor([[10.0], [170.0]], dtype=F64) / 2)
        turns = world_to_camera_from_quaternion(torch.cat((half.cos(), half.sin(), half * 0, half * 0), 1))[:, :3, :3]
        start = world_to_camera_from_quaternion(torch.eye(4, dtype=F64)[:1])[:, :3, :3]
        metrics = pose_metrics(Rotations(turns, start.expand(2, 3, 3), ["car"] * 2), {"": torch.eye(3, dtype=F64)})
        assert metrics["rotation_error_median"] == pytest.approx(90)

    def test_a_network_that_is_right_in_its_own_frame_has_no_error(self) -> None:
        known, frame = rotation(50), rotation(1)[0]
        believed = known @ frame
        other = rotation(1)[0]
        both = Rotations(torch.cat((known, known)), torch.cat((believed, known @ other)), ["car"] * 50 + ["sofa"] * 50)
        frames = alignments(both)
        metrics = pose_metrics(both, frames)
        assert metrics["rotation_error_median"] < 1e-5 and metrics["accuracy_30"] == 1
        assert metrics["categories"]["sofa"]["views"] == 50 and set(metrics["alignment"]) == {"car", "sofa"}
        points = torch.rand(2, 9, 3)
        in_its_frame = points @ frame.float()  # p' = Aᵀ p, as a row
        predictor = aligned(lambda images, category: in_its_frame, frames)
        torch.testing.assert_close(predictor(points, "car"), points, atol=1e-5, rtol=0)
        torch.testing.assert_close(frames["sofa"], other)
        assert alignment_of(frames, "boat") is frames[""], "what was not trained on has the frame of all"

    def test_random_cameras_are_wrong(self) -> None:
        known, believed = rotation(400), rotation(400)
        found = Rotations(known, believed, ["chair"] * 400)
        metrics = pose_metrics(found, alignments(found))
        assert metrics["rotation_error_median"] > 90 and metrics["accuracy_30"] < 0.1


def config(data: str, mode: str, proposals: str = "network") -> TrainConfig:
    model = ModelConfig(points=40, channels=2, hidden=8)
    pose = PoseConfig(mode=mode, proposals=proposals, candidates=3, azimuths=6, elevations=2)
    result = TrainConfig(model=model, loss=LossConfig(grid=16), pose=pose)
    result.data.path, result.data.supervision_views = data, 3
    return result


@pytest.mark.parametrize("mode", ["predict", "random"])
@pytest.mark.parametrize("proposals", ["search", "network"])
def test_from_shards_to_gradients_and_results(mode: str, proposals: str, tmp_path: Path) -> None:
    settings = config(make_balls(tmp_path / "data").root, mode, proposals)
    validate(settings)
    index = load_index(settings.data.path)
    table = SampleTable.select(index, "train")
    stream = batches(
        table, table.plan(0, 2), settings.data, LoaderConfig(), rank=0, world_size=1, start=0, stop=1,
        view_images=mode == "predict",
    )  # fmt: skip
    batch = next(iter(stream)).to(torch.device("cpu"), torch.float32)
    network = build_network(settings, 32)
    prediction = AllHeads(network)(batch.images, batch.view_images)
    if mode == "predict":
        assert batch.view_images is not None and batch.view_images.shape == (2, 3, 3, 32, 32)
        shapes = {name: part.shape for name, part in prediction._asdict().items() if part is not None}
        shapes.pop("points")
        by_search = {"beliefs": (2, 3, 12)}
        assert shapes == (by_search if proposals == "search" else {"candidates": (2, 3, 3, 4), "student": (2, 3, 4)})
    loss = objective(prediction, batch, settings.loss, settings.pose, 0, 0)
    other = batch.select(slice(0, 2))
    other.world_to_camera = torch.zeros_like(batch.world_to_camera)
    assert objective(prediction, other, settings.loss, settings.pose, 0, 0).total == loss.total, "cameras are not read"
    loss.total.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    run = TrainedRun(tmp_path / "run", settings, 32, 1, network.eval())
    run.path.mkdir()
    block = evaluate_run(run, EvaluateOptions(split="test"), Console(quiet=True)).block
    assert 0 <= block["poses"]["rotation_error_median"] <= 180 and block["poses"]["views"] == 9
    assert block["overall"]["chamfer"] > 0


@pytest.mark.parametrize("proposals", ["search", "network"])
def test_a_rank_without_an_object_takes_part_with_a_zero_gradient(proposals: str) -> None:
    network = build_network(config("", "predict", proposals), 32)
    prediction = AllHeads(network)(torch.zeros(0, 3, 32, 32), torch.zeros(0, 3, 3, 32, 32))
    expected = (0, 3, 12) if proposals == "search" else (0, 3, 3, 4)
    assert (prediction.beliefs if proposals == "search" else prediction.candidates).shape == expected
    prediction.nothing().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in network.parameters())


def test_random_cameras_depend_on_sample_and_step() -> None:
    first = random_quaternions(KEYS, 3, 0, 0)
    assert torch.equal(random_quaternions(KEYS[1:], 3, 0, 0)[0], first[1])
    assert not torch.equal(random_quaternions(KEYS, 3, 0, 1), first)


def test_impossible_settings_are_refused() -> None:
    wrong = (
        {"mode": "guess"}, {"candidates": 0}, {"student_weight": 0}, {"proposals": "all"}, {"azimuths": 3},
        {"elevation": [40.0, -20.0]}, {"elevation": [0.0]}, {"softness_end": 0.0},
    )  # fmt: skip
    for pose in (PoseConfig(**values) for values in wrong):
        with pytest.raises(UsageError, match=r"pose\."):
            validate(TrainConfig(pose=pose))
    with pytest.raises(ValueError, match="no pose heads"):
        build_network(TrainConfig(model=ModelConfig(points=4, channels=1, hidden=4)), 32).cameras(
            torch.rand(1, 3, 32, 32)
        )
