"""`python -m drwr_dist.evaluate`: measure a trained run on a split, beside two references.

For each object, every view in turn is the input image; the numbers of an object are means over its views.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from drwr_dist.cli import load_options, run_verb
from drwr_dist.config import TrainConfig
from drwr_dist.data.index import DatasetIndex, load_index
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable, as_tensor
from drwr_dist.errors import DataError, UsageError
from drwr_dist.monitor import METRICS, VALIDATION
from drwr_dist.point_cloud import write_mat, write_ply
from drwr_dist.poses import ALIGNED_OBJECTS, alignment_of, alignments, pose_metrics, rotations
from drwr_dist.report import REPORT, write_report
from drwr_dist.results import RESULT_TEXT, print_table, write_result
from drwr_dist.run import RESULT, TrainedRun, load_run, untrained_model
from drwr_dist.scores import Predictor, object_metrics, summarise

PREDICTIONS = "predictions"
RELEASED_PREDICTIONS = "pred"

# key of an object, its predictions [V, N, 3]
Save = Callable[[str, Tensor], None]


@dataclass
class EvaluateOptions:
    """Measure a trained run on a split; writes result.json, result.txt, report.html and predictions/ into it."""

    run: str = "???"  # folder of the run: <storage>/<name>
    data: str | None = None  # folder or URL of the dataset; none: the one the run was trained on
    split: str = "test"  # train | val | test
    checkpoint: str = "last"  # last | best | STEP: which of the run's weights; best by the validation metric
    categories: list[str] = field(default_factory=list)  # only these; empty: all
    predictions: bool = True  # write a PLY per object and input view
    mat: bool = False  # write predictions as the released code does too: pred/<category>/<object>_pc.mat
    references: bool = True  # evaluate the untrained network and the mean shape too
    report: bool = True  # write report.html: shapes to turn, tables and learning curves in one file


def evaluate_run(run: TrainedRun, options: EvaluateOptions, console: Console) -> dict[str, Any]:
    """Evaluate one run as `options` say; write the results into its folder and return this split's block.

    Raises:
        UsageError: the dataset doesn't fit the network, or has no such split or category.
        DataError: a damaged sample.
    """
    index = load_index(options.data or run.config.data.path)
    if index.image_size != run.image_size:
        raise UsageError(
            f"data={index.root}: images of {index.image_size} pixels; the run was trained on {run.image_size}"
        )
    table = SampleTable.select(index, options.split, options.categories)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = network_predictor(run.model.to(device), device)
    poses = None
    if run.config.pose.mode != "known":
        frames = predicted_frames(run, index, device)
        predictor = aligned(predictor, frames)
        poses = pose_metrics(rotations(run, table, device), frames)
    save = functools.partial(save_predictions, run.path, options)
    block = measure(predictor, table, run.config, save, f"{options.split}: trained", console)
    if poses is not None:
        block["poses"] = poses
    if options.references:
        block["references"] = references(run, table, options, console, device)
    write_result(run.path, options.split, run.step, block)
    if options.report:
        run.storage.fetch(METRICS, VALIDATION)
        write_report(run, options.split, table, block, predictor)
    run.storage.publish(RESULT, RESULT_TEXT, REPORT, PREDICTIONS, RELEASED_PREDICTIONS)
    return block


def predicted_frames(run: TrainedRun, index: DatasetIndex, device: torch.device) -> dict[str, Tensor]:
    """Return the rotation [3, 3] from the frame that the network chose for each category to the object frame.

    Found on the training split, so that what is evaluated has no say in it.
    """
    training = SampleTable.select(index, run.config.data.split, run.config.data.categories)
    return alignments(rotations(run, training, device, limit=ALIGNED_OBJECTS))


def aligned(predictor: Predictor, frames: dict[str, Tensor]) -> Predictor:
    """Wrap a predictor whose points are to be rotated by the alignment of their category."""
    return lambda images, category: predictor(images, category) @ alignment_of(frames, category).mT.float()


def save_predictions(run: Path, options: EvaluateOptions, key: str, points: Tensor) -> None:
    """Write the predictions [V, N, 3] of one object in the formats that the options ask for."""
    for view, cloud in enumerate(points if options.predictions else ()):
        write_ply(run / PREDICTIONS / f"{key}.{view:02d}.ply", cloud.numpy())
    if options.mat:
        write_mat(run / RELEASED_PREDICTIONS / f"{key}_pc.mat", points.numpy())


def network_predictor(model: torch.nn.Module, device: torch.device) -> Predictor:
    """Wrap a network for `measure`."""
    dtype = next(model.parameters()).dtype

    @torch.no_grad()
    def predict(images: Tensor, category: str) -> Tensor:
        points: Tensor = model(images.to(device, dtype))
        return points.float().cpu()

    return predict


def references(
    run: TrainedRun, table: SampleTable, options: EvaluateOptions, console: Console, device: torch.device
) -> dict[str, Any]:
    """Measure what a reader compares with: the untrained network, and each category's mean shape."""
    blocks = {}
    untrained = network_predictor(untrained_model(run.config, run.image_size).to(device), device)
    blocks["untrained"] = measure(untrained, table, run.config, None, f"{options.split}: untrained", console)
    shapes = mean_shapes(table, run.config.model.points, run.config.seed)
    if shapes:

        def constant(images: Tensor, category: str) -> Tensor:
            return shapes[category].expand(1, -1, -1)  # the same for every view: measured once

        blocks["mean_shape"] = measure(constant, table, run.config, None, f"{options.split}: mean shape", console)
    for block in blocks.values():
        del block["objects"]
    return blocks


def mean_shapes(table: SampleTable, points: int, seed: int) -> dict[str, Tensor]:
    """Return, per category of `table`, a random subset [points, 3] of all its training objects' ground truths.

    This reference has seen 3D, which training never does. Empty where a category has no training ground truth.
    """
    categories = sorted({key.split("/")[0] for key in table.keys})
    shapes = {}
    for category in categories:
        if not table.index.select("train", [category]):
            return {}
        training = SampleTable.select(table.index, "train", [category])
        clouds = [training.read(number, views=[0], with_points=True).points for number in range(len(training.keys))]
        known = [cloud for cloud in clouds if cloud is not None]
        if not known:
            return {}
        union = np.concatenate(known)
        chosen = np.random.default_rng(seed).choice(len(union), points, replace=len(union) < points)
        shapes[category] = torch.from_numpy(union[chosen])
    return shapes


def measure(
    predictor: Predictor, table: SampleTable, config: TrainConfig, save: Save | None, title: str, console: Console
) -> dict[str, Any]:
    """Run a predictor on every object and view of `table` and average what it scores.

    Args:
        predictor: images of one object to points.
        table: the objects.
        config: for the background colour.
        save: writes an object's predictions; None writes nothing.
        title: of the progress bar.
        console: where the bar is drawn.
    """
    objects: dict[str, dict[str, float]] = {}
    torch.set_num_threads(1)  # many small operations: threads would cost more than they give
    quiet = not console.is_terminal  # a log gets the title alone
    if quiet:
        console.print(f"evaluating {title} ({len(table.keys)} objects)", highlight=False)
    for number in track(range(len(table.keys)), title, console=console, transient=True, disable=quiet):
        sample = table.read(number, with_points=True)
        images = composite(sample.images, sample.masks, config.data.background)
        points = predictor(torch.stack([as_tensor(image) for image in images]), sample.key.split("/")[0])
        if not torch.isfinite(points).all():
            raise DataError(f"{sample.key}: the network's prediction is not finite")
        if save:
            save(sample.key, points)
        objects[sample.key] = object_metrics(points, sample)
    return summarise(objects, table.index.views)


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = load_options(EvaluateOptions, arguments, verb="evaluate")
    console = Console(stderr=False)
    run = load_run(options.run, options.checkpoint)
    block = evaluate_run(run, options, console)
    print_table(console, options.split, block)
    for name in (RESULT, REPORT) if options.report else (RESULT,):
        console.print(f"written: {run.storage.address}/{name}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    run_verb(main)
