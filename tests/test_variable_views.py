"""Objects with different numbers of views: the index holds the largest, batches are padded and masked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shard_tools import encoded, make_sample, write_samples

from drwr_dist.config import DataConfig, LoaderConfig, LossConfig, PoseConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.data.verify import verify_dataset
from drwr_dist.engine.objective import objective
from drwr_dist.errors import DataError
from drwr_dist.measuring import measure_here
from drwr_dist.model import Prediction

VIEWS = {"ball/a": 5, "ball/b": 3, "ball/c": 1, "ball/d": 4}


@pytest.fixture
def table(tmp_path: Path) -> SampleTable:
    samples = [encoded(make_sample(key, views=views)) for key, views in VIEWS.items()]
    return SampleTable.select(write_samples(tmp_path / "data", samples, views=5), "train")


def epoch(table: SampleTable, batch: int, **settings: object) -> list[Batch]:
    config = DataConfig(**{"supervision_views": 5, **settings})  # type: ignore[arg-type]
    plan = table.plan(0, batch)
    stop = plan.steps_per_epoch
    return list(batches(table, plan, config, LoaderConfig(), rank=0, world_size=1, start=0, stop=stop))


@pytest.mark.parametrize("order", ["random", "fixed"])
@pytest.mark.parametrize("supervision", [5, 3])
def test_batches_are_padded_and_masked(table: SampleTable, order: str, supervision: int):
    (batch,) = epoch(table, 4, view_order=order, supervision_views=supervision)
    assert batch.masks.shape == (4, supervision, 32, 32) and batch.view_mask.shape == (4, supervision)
    for row, key in enumerate(batch.keys):
        views = min(VIEWS[key], supervision)
        assert batch.view_mask[row].tolist() == [True] * views + [False] * (supervision - views)
        cameras = table.read(table.keys.index(key)).world_to_camera
        shown = [next(v for v, c in enumerate(cameras) if (c == camera.numpy()).all()) for camera in
                 batch.world_to_camera[row, :views]]  # fmt: skip
        assert shown == (list(range(views)) if order == "fixed" else sorted(set(shown)))


@pytest.mark.parametrize("semantics", ["default", "released"])
def test_an_object_counts_as_it_does_alone(table: SampleTable, semantics: str):
    """The gradient of a batch of four is a quarter of what each object gives by itself, without a padded place."""
    loss = LossConfig(semantics=semantics, grid=16, volumetric_weight=0.1, chamfer_2d_weight=0.1, chamfer_2d_draws=50)
    (batch,) = epoch(table, 4, view_order="fixed")
    batch = batch.to(torch.device("cpu"), torch.float64)
    clouds = {key: (torch.rand(1, 40, 3, dtype=torch.float64) - 0.5).requires_grad_() for key in VIEWS}
    together = objective(Prediction(torch.cat([clouds[key] for key in batch.keys])), batch, loss, PoseConfig())
    gradients = torch.autograd.grad(together.total, list(clouds.values()))
    alone = [
        objective(Prediction(clouds[one.keys[0]]), one.to(torch.device("cpu"), torch.float64), loss, PoseConfig())
        for key in VIEWS
        for one in epoch(table, 1, view_order="fixed", supervision_views=VIEWS[key])
        if one.keys == [key]
    ]
    assert len(alone) == len(VIEWS)
    torch.testing.assert_close(together.total, sum(one.total for one in alone) / 4)
    for gradient, one, cloud in zip(gradients, alone, clouds.values(), strict=True):
        torch.testing.assert_close(gradient, torch.autograd.grad(one.total, cloud)[0] / 4)


def test_evaluation_averages_over_the_views_that_there_are(table: SampleTable):
    def predictor(images: torch.Tensor, category: str) -> torch.Tensor:
        return torch.rand(len(images), 50, 3) - 0.5

    block = measure_here(predictor, table)
    assert set(block["objects"]) == set(VIEWS)
    assert all(row["chamfer"] > 0 for row in block["objects"].values())
    assert "silhouette_iou" not in block["objects"]["ball/c"], "of an only view, none is held out"
    assert block["overall"]["silhouette_iou"] >= 0


def test_verify_accepts_fewer_views_than_the_index_says_and_not_more(table: SampleTable, tmp_path: Path):
    assert verify_dataset(table.index.root) == []
    samples = [encoded(make_sample(key, views=views)) for key, views in VIEWS.items()]
    small = write_samples(tmp_path / "small", samples, views=4)
    found = verify_dataset(small.root)
    assert [(finding.key, finding.reason) for finding in found] == [("ball/a", "5 views, the index says at most 4")]
    with pytest.raises(DataError, match=r"ball/a: 5 views .* at most 4 views"):
        SampleTable.select(small, "train").read(0)
