"""Evaluation: scores by independent code, the same with any number of workers, and runs side by side."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from rich.console import Console
from toy import call, drwr

from drwr_dist import checkpoint
from drwr_dist.comparison import compare, intervals, resampling
from drwr_dist.config import DataConfig, ModelConfig, TrainConfig
from drwr_dist.data.index import load_index
from drwr_dist.data.sample import ObjectSample
from drwr_dist.data.stream import SampleTable
from drwr_dist.errors import UsageError
from drwr_dist.evaluate import EvaluateOptions, evaluate_run, measure_run
from drwr_dist.metrics import PointIndex, earth_mover_distance, nearest_distances
from drwr_dist.point_cloud import read_ply
from drwr_dist.results import is_worse_than_untrained
from drwr_dist.run import load_config, load_result, load_run, save_config, untrained_model
from drwr_dist.scores import held_out_iou, mean_row, object_metrics
from drwr_dist.voxels import filled_voxels


def make_run(folder: Path, data: Path, seed: int) -> Path:
    model = ModelConfig(points=60, channels=4, hidden=16, decoder_std=0.1)
    config = TrainConfig(name=folder.name, seed=seed, data=DataConfig(path=str(data)), model=model)
    save_config(folder, config, image_size=64)
    checkpoint.write(folder, 1, {"model": untrained_model(config, 64).state_dict()}, {})
    return folder


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make_run(tmp_path_factory.mktemp("runs") / f"seed{seed}", toy_dataset, seed) for seed in (0, 1)]


def test_scores_are_those_of_plain_code(runs: list[Path], toy_dataset: Path):
    """All metrics of an object, from the written clouds, by the definitions and nothing else."""
    options = EvaluateOptions(split="test", references=False, report=False, earth_mover=40)
    block = evaluate_run(load_run(runs[0]), options, Console(quiet=True)).block
    table = SampleTable.select(load_index(str(toy_dataset)), "test")
    sample = table.read(0, with_points=True)
    rows = []
    for view in range(5):
        cloud = read_ply(runs[0] / "predictions" / f"{sample.key}.{view:02d}.ply").astype(float)
        pairs = np.linalg.norm(cloud[:, None] - sample.points[None], axis=-1)
        forward, backward = pairs.min(1), pairs.min(0)
        precision, recall = (forward < 0.02).mean(), (backward < 0.02).mean()
        rows.append(
            {
                "chamfer": 100 * (forward.mean() + backward.mean()),
                "chamfer_squared": 1e4 * ((forward**2).mean() + (backward**2).mean()),
                "f_score_2": 2 * precision * recall / max(precision + recall, 1e-12),
            }
        )
    found = block["objects"][sample.key]
    for name in rows[0]:
        assert found[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=1e-4, abs=1e-9), name
    assert found["chamfer_best_view"] == pytest.approx(min(row["chamfer"] for row in rows), rel=1e-4)
    assert found["earth_mover"] >= found["chamfer_predicted_to_target"]  # a matching is no shorter than the nearest


def test_voxel_iou_is_that_of_plain_code(runs: list[Path], toy_dataset: Path):
    """A box with a leg, from the import's own mesh file, each part asked by trimesh; the mean of the views."""
    table = SampleTable.select(load_index(str(toy_dataset)), "test", ["slab"])
    block = measure_run(load_run(runs[0]), EvaluateOptions(categories=["slab"], references=False), Console(quiet=True))
    sample = table.read(0, with_points=True)
    mesh = trimesh.load(toy_dataset.parent / "meshes" / f"{sample.key}.ply")
    low, high = mesh.bounds
    mesh.apply_translation(-(low + high) / 2).apply_scale(1 / np.linalg.norm(high - low))
    place = (np.arange(32) + 0.5) / 32 - 0.5
    centres = np.stack(np.meshgrid(place, place, place, indexing="ij"), -1).reshape(-1, 3)
    inside = np.logical_or.reduce([part.contains(centres) for part in mesh.split(only_watertight=False)])
    assert np.array_equal(sample.occupancy.reshape(-1), inside)
    clouds = [read_ply(runs[0] / "predictions" / f"{sample.key}.{view:02d}.ply") for view in range(5)]
    filled = [filled_voxels(cloud).reshape(-1) for cloud in clouds]
    expected = np.mean([(each & inside).sum() / (each | inside).sum() for each in filled])
    assert block.block["objects"][sample.key]["voxel_iou"] == pytest.approx(expected)
    assert block.block["selection"] == {"categories": ["slab"]}


def test_a_mean_says_over_how_many_objects():
    row = mean_row([{"chamfer": 1.0, "voxel_iou": 0.5}, {"chamfer": 3.0}])
    assert row == {"objects": 2, "chamfer": 2.0, "voxel_iou": 0.5, "objects_with_voxel_iou": 1}
    table = compare({"a": {"x/1": {"chamfer": 1.0, "voxel_iou": 0.5}, "x/2": {"chamfer": 3.0}}} | {"b": {
        "x/1": {"chamfer": 2.0, "voxel_iou": 0.7}, "x/2": {"chamfer": 4.0}}})  # fmt: skip
    group = table["groups"]["all"]
    assert group["metrics"]["voxel_iou"]["b"]["mean"] == 0.7 and group["objects_with_voxel_iou"] == 1


def test_the_input_view_never_judges_its_own_prediction(toy_dataset: Path):
    """With one input view, as validation has it, its silhouette is left out too; a shape from no view has all."""
    sample = SampleTable.select(load_index(str(toy_dataset)), "test").read(0, with_points=True)
    points = torch.rand(1, 60, 3) - 0.5
    first, *others = (held_out_iou(points[0], take(sample, [view]), None) for view in range(len(sample.masks)))
    assert object_metrics(points, sample)["silhouette_iou"] == pytest.approx(np.mean(others))
    assert object_metrics(points, sample, shared=True)["silhouette_iou"] == pytest.approx(np.mean([first, *others]))


def take(sample: ObjectSample, views: list[int]) -> ObjectSample:
    cameras = {"world_to_camera": sample.world_to_camera[views], "focal_length": sample.focal_length[views]}
    return dataclasses.replace(sample, images=sample.images[views], masks=sample.masks[views], **cameras)


@pytest.fixture
def damaged(runs: list[Path], toy_dataset: Path, tmp_path: Path) -> Path:
    """A run whose dataset has rot in one object of the train split and in one of the test split."""
    data = tmp_path / "data"
    shutil.copytree(toy_dataset, data)
    for split in ("train", "test"):
        shard = next(shard for shard in load_index(str(data)).shards if shard.split == split)
        content = bytearray((data / shard.url).read_bytes())
        content[shard.offsets[0] + 700] ^= 255
        (data / shard.url).write_bytes(content)
    return make_run(tmp_path / "run", data, seed=0)


def test_what_can_not_be_read_takes_no_numbers_away(damaged: Path, tmp_path: Path):
    data = load_run(damaged).config.data.path
    quiet = ["predictions=false", "report=false"]
    done = call("evaluate", f"run={damaged}", *quiet)
    assert done.returncode == 1 and "test-000000.tar" in done.stderr
    done = call("evaluate", f"run={damaged}", "skip_bad=true", *quiet)
    assert done.returncode == 0, done.stderr
    assert "1 damaged objects are left out" in done.stdout
    assert "mean shape: 1 training objects can't be read; the first: " in done.stdout
    block = load_result(damaged)["splits"]["test"]
    objects = len(SampleTable.select(load_index(data), "test").keys)
    assert block["overall"]["objects"] == len(block["objects"]) == objects - 1 and len(block["skipped"]) == 1
    assert block["references"]["mean_shape"]["overall"]["objects"] == objects - 1
    assert block["references"]["mean_shape"]["training_objects_left_out"] == 1
    for shard in load_index(data).shards:  # a dataset may have its test shards alone
        if shard.split == "train":
            (Path(data) / shard.url).unlink()
    assert call("evaluate", f"run={damaged}", "skip_bad=true", *quiet).returncode == 0
    assert "mean_shape" not in load_result(damaged)["splits"]["test"]["references"]


def test_a_run_that_skipped_is_evaluated_so(damaged: Path):
    config, _ = load_config(damaged)
    config.data.on_bad_sample = "skip"
    save_config(damaged, config, image_size=64)
    options = EvaluateOptions(references=False, report=False, predictions=False)
    assert len(measure_run(load_run(damaged), options, Console(quiet=True)).block["skipped"]) == 1


def test_any_shards_are_evaluated(runs: list[Path], toy_dataset: Path):
    """One shard, a pattern, several of different splits: exactly their objects, under the name of their splits."""
    index = load_index(str(toy_dataset))
    keys = {shard.url: set(shard.keys) for shard in index.shards}
    plain = {"references": False, "report": False, "predictions": False}
    names = {split: [shard.url for _, shard in index.split(split)] for split in ("train", "test")}
    for shards, split, expected in (
        (names["train"][1], "train", keys[names["train"][1]]),
        ("train-*1.tar", "train", keys["train-000001.tar"]),
        (f"{names['train'][0]}, {names['test'][0]}", "train+test", keys[names["train"][0]] | keys[names["test"][0]]),
    ):
        found = measure_run(load_run(runs[0]), EvaluateOptions(shards=shards, **plain), Console(quiet=True))
        assert found.split == split and set(found.block["objects"]) == expected
    with pytest.raises(UsageError, match=r"shards=train-000000\.tar: no shard of .* there are test"):
        options = EvaluateOptions(split="test", shards="train-000000.tar", **plain)
        measure_run(load_run(runs[0]), options, Console(quiet=True))


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_digits(runs: list[Path], tmp_path: Path):
    shutil.rmtree(runs[0] / "predictions", ignore_errors=True)
    results = {}
    for workers in (1, 3):
        done = drwr("evaluate", f"run={runs[0]}", "shards=train-*.tar", f"workers={workers}", "report=false")
        assert done.returncode == 0, done.stderr
        results[workers] = json.loads((runs[0] / "result.json").read_text())["splits"]["train"]
        clouds = sorted((runs[0] / "predictions").rglob("*.ply"))
        results[workers]["clouds"] = [path.read_bytes() for path in clouds]
        for path in clouds:
            path.unlink()
    assert results[1] == results[3] and len(results[1]["objects"]) == 18 and len(results[1]["clouds"]) == 90


def test_point_index_finds_what_brute_force_finds():
    random = torch.Generator().manual_seed(0)
    queries, among = torch.rand(500, 3, generator=random), torch.rand(700, 3, generator=random)
    among[:200] = among[0]  # coincident points
    expected = torch.cdist(queries.double(), among.double()).min(1).values.numpy()
    assert PointIndex(among).distances_from(PointIndex(queries)) == pytest.approx(expected, abs=1e-12)
    assert nearest_distances(queries, among).numpy() == pytest.approx(expected, abs=1e-6)


def test_earth_mover_is_the_best_of_all_matchings():
    one, other = torch.rand(5, 3), torch.rand(5, 3)
    costs = torch.cdist(one.double(), other.double()).numpy()
    best = min(np.mean([costs[i, j] for i, j in enumerate(order)]) for order in itertools.permutations(range(5)))
    assert earth_mover_distance(one, other) == pytest.approx(best, rel=1e-6)
    moved = one + torch.tensor([0.3, 0.0, 0.0])
    assert earth_mover_distance(one, moved[torch.randperm(5)]) == pytest.approx(0.3, abs=1e-6)
    with pytest.raises(ValueError, match="2048"):
        earth_mover_distance(one, other, points=4000)


def test_bootstrap_intervals_cover_and_see_paired_differences():
    """The interval of a mean is that of normal theory; a small constant difference is seen through large noise."""
    random = np.random.default_rng(0)
    hard = random.normal(10, 3, 200)
    (one, other) = intervals(np.stack([hard, hard + 0.2 + random.normal(0, 0.1, 200)]), resampling(200))
    half = 1.96 * hard.std() / np.sqrt(200)
    assert one["high"] - one["mean"] == pytest.approx(half, rel=0.1)
    assert one["difference"] == {"mean": 0, "low": 0, "high": 0}
    assert other["low"] < one["high"] and 0.15 < other["difference"]["low"] < other["difference"]["high"] < 0.25


def test_comparison_takes_common_objects_alone():
    one = {"a/1": {"chamfer": 1.0}, "a/2": {"chamfer": 3.0}, "b/1": {"chamfer": 9.0}}
    other = {"a/1": {"chamfer": 2.0}, "a/2": {"chamfer": 4.0}, "c/1": {"chamfer": 9.0}}
    table = compare({"one": one, "other": other})
    assert list(table["groups"]) == ["a", "all"] and table["groups"]["all"]["objects"] == 2
    assert table["groups"]["all"]["metrics"]["chamfer"]["other"]["difference"]["mean"] == 1
    with pytest.raises(UsageError, match="no object"):
        compare({"one": {"a/1": {}}, "other": {"b/1": {}}})


def test_runs_side_by_side(runs: list[Path], tmp_path: Path):
    names = ",".join(map(str, runs))
    plain = EvaluateOptions(split="test", references=False, report=False, predictions=False)
    before = [load_result(run) for run in runs]
    done = drwr("evaluate", f"runs={names}", "split=test", f"output={tmp_path}")
    assert done.returncode == 0, done.stderr
    table = json.loads((tmp_path / "comparison.json").read_text())
    assert [load_result(run) for run in runs] == before  # a comparison leaves each run's own results as they are
    for run in runs:
        result = measure_run(load_run(run), plain, Console(quiet=True)).block
        for group, row in [*result["categories"].items(), ("all", result["overall"])]:
            found = table["groups"][group]["metrics"]["chamfer"][run.name]
            assert found["mean"] == pytest.approx(row["chamfer"]) and found["low"] <= found["mean"] <= found["high"]
    assert "seed0" in (tmp_path / "comparison.txt").read_text() and "seed1" in done.stdout
    assert ElementTree.parse(tmp_path / "comparison.svg").getroot().tag.endswith("svg")


def test_a_comparison_takes_no_part_for_the_whole(runs: list[Path], toy_dataset: Path, tmp_path: Path):
    """Results of some categories are taken where all runs have the same ones, else all are measured anew."""
    quiet = ["predictions=false", "report=false", "references=false"]
    pair = []
    for number, run in enumerate(runs):
        shutil.copytree(run, tmp_path / f"run{number}")
        pair.append(str(tmp_path / f"run{number}"))
    groups = {}
    for number, run in enumerate(pair):
        assert call("evaluate", f"run={run}", "categories=[brick]", *quiet).returncode == 0
        done = call("evaluate", f"runs={','.join(pair)}", f"output={tmp_path / 'comparison'}")
        assert done.returncode == 0, done.stderr
        groups[number] = set(json.loads((tmp_path / "comparison" / "comparison.json").read_text())["groups"])
    assert groups == {0: {"brick", "slab", "all"}, 1: {"brick", "all"}}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["run=", "runs="]),
        (["run=a", "runs=b,c"], ["run=", "runs="]),
        (["runs=a"], ["runs=a", "two"]),
        (["run=a", "earth_mover=9999"], ["earth_mover=9999", "2048"]),
        (["run=a", "workers=-2"], ["workers=-2"]),
        (["run=a", "split=tset"], ["split=tset", "train, val, test"]),
    ],
)
def test_evaluate_refuses_mistakes(arguments: list[str], names: list[str]):
    done = call("evaluate", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for name in names:
        assert name in done.stderr


def test_weights_are_those_that_the_run_is_judged_by(toy_dataset: Path, tmp_path: Path):
    """By evaluation.checkpoint, unless another one is asked for; the last where none has been validated yet."""
    run = make_run(tmp_path / "run", toy_dataset, 0)
    config, side = load_config(run)
    config.evaluation.checkpoint, config.validation.every = "best", 1
    save_config(run, config, side)
    assert load_run(run, "auto").step == 1
    weights = {"model": untrained_model(config, 64).state_dict()}
    for step, score in ((2, 5.0), (3, 6.0)):
        checkpoint.write(run, step, weights, {"validation": {config.validation.metric: score}})
    assert [load_run(run, which).step for which in ("auto", "best", "last", "3")] == [2, 2, 3, 3]
    done = call("evaluate", f"run={run}", "predictions=false", "report=false", "references=false")
    assert "weights of step 2 of" in done.stdout and load_result(run)["step"] == 2
    other, output = make_run(tmp_path / "other", toy_dataset, 1), tmp_path / "both"
    done = call("evaluate", f"runs={run},{other}", f"output={output}")
    trained = {"run": {"step": 2, "steps": config.steps}, "other": {"step": 1, "steps": config.steps}}
    assert json.loads((output / "comparison.json").read_text())["weights"] == trained
    assert f"weights of run: step 2 of {config.steps}, other: step 1 of {config.steps}" in done.stdout


def test_a_network_that_is_worse_than_at_its_start_is_told():
    def told(trained: float, **references: object) -> bool:
        return is_worse_than_untrained({"overall": {"chamfer": trained}, "references": references})

    untrained = {"overall": {"chamfer": 10.0}}
    assert told(123.1, untrained=untrained)
    assert not told(7.0, untrained=untrained) and not told(10.01, untrained=untrained) and not told(123.1)
    assert not is_worse_than_untrained({"overall": {"silhouette_iou": 0.1}, "references": {"untrained": untrained}})


def test_results_of_another_dataset_say_so_and_can_go_elsewhere(runs: list[Path], toy_dataset: Path, tmp_path: Path):
    """The run's own results stay as they are under output=…; without it the title and the file name the data."""
    shutil.copytree(toy_dataset, tmp_path / "moved")
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    quiet = ["predictions=false", "report=false", "references=false"]
    assert call("evaluate", f"run={run}", *quiet).returncode == 0
    own = (run / "result.json").read_bytes()
    selection = [f"data={tmp_path / 'moved'}", *quiet]
    done = call("evaluate", f"run={run}", *selection, f"output={tmp_path / 'elsewhere'}", "report=true")
    assert done.returncode == 0 and (run / "result.json").read_bytes() == own
    assert f"weights of step 1 of {load_run(run).config.steps}" in done.stdout
    elsewhere = load_result(tmp_path / "elsewhere")["splits"]["test"]
    assert elsewhere["selection"] == {"data": [str(tmp_path / "moved")]}
    assert elsewhere["objects"] == json.loads(own)["splits"]["test"]["objects"]
    assert (tmp_path / "elsewhere" / "report.html").exists() and not (run / "report.html").exists()
    (tmp_path / "file").touch()
    for which in (f"run={run}", f"runs={run},{runs[1]}"):
        done = call("evaluate", which, *selection, f"output={tmp_path / 'file'}")
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"output={tmp_path / 'file'}" in done.stderr
    done = call("evaluate", f"run={run}", *selection)
    assert done.returncode == 0 and "replaced" in done.stdout
    assert "moved" in (run / "result.txt").read_text()
