"""`python -m drwr_dist.evaluate`: measure a trained run on a split, beside two references.

For each object, every view in turn is the input image; the numbers of an object are means over its views.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from drwr_dist import terminal
from drwr_dist.cli import load_options, run_verb
from drwr_dist.comparison import compare, print_comparison, write_comparison
from drwr_dist.config import SPLITS
from drwr_dist.data.index import DatasetIndex, load_index
from drwr_dist.data.remote import absolute
from drwr_dist.data.stream import SampleTable
from drwr_dist.errors import DataError, UsageError
from drwr_dist.measuring import MEAN_SHAPE, TRAINED, UNTRAINED, Job, Subject, constant, measure, subject_predictor
from drwr_dist.measuring import aligned as aligned
from drwr_dist.metrics import EARTH_MOVER_POINTS
from drwr_dist.monitor import METRICS, VALIDATION
from drwr_dist.point_cloud import write_mat, write_ply
from drwr_dist.pool import Crew, session
from drwr_dist.poses import ALIGNED_OBJECTS, alignments, pose_metrics, rotations
from drwr_dist.pretrained import FOLDER, NAME, located
from drwr_dist.report import REPORT, write_report
from drwr_dist.results import RESULT_TEXT, print_table, write_result
from drwr_dist.run import RESULT, TrainedRun, load_result, load_run
from drwr_dist.scores import Predictor

PREDICTIONS = "predictions"
RELEASED_PREDICTIONS = "pred"
COMPARISON = "comparison"
MOST_UNREAD = 20  # training objects that a mean shape may do without


@dataclass
class EvaluateOptions:
    """Measure a trained run on a split; writes result.json, result.txt, report.html and predictions/ into it."""

    run: str | None = None  # folder of the run: <storage>/<name>
    runs: str | None = None  # instead of run: several to compare on the same objects, a,b,…; pretrained may be one
    output: str | None = None  # folder for what is written; none: the run's own, of runs=… comparison/
    data: str | None = None  # folder or URL of the dataset; none: the one the run was trained on
    split: str | None = None  # train | val | test; none: test, or with shards=… those that the shards belong to
    checkpoint: str = "auto"  # auto | last | best | STEP: which weights; auto: those of the run's evaluation.checkpoint
    categories: list[str] = field(default_factory=list)  # only these; empty: all
    shards: str | None = None  # only samples of these shards: names or glob patterns, separated by commas
    predictions: bool = True  # write a PLY per object and input view
    mat: bool = False  # write predictions as the released code does too: pred/<category>/<object>_pc.mat
    references: bool = True  # evaluate the untrained network and the mean shape too
    report: bool = True  # write report.html: shapes to turn, tables and learning curves in one file
    earth_mover: int = 0  # points matched for the Earth mover's distance, at most 2048 (1 s a view); 0: not computed
    skip_bad: bool = False  # leave damaged objects out and count them; done too where data.on_bad_sample=skip trained
    workers: int = 1  # 1: this process; more, or 0 for all cores: Ray tasks, on the cluster of RAY_ADDRESS or here


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found."""

    split: str  # whose results these are; several, where the shards belong to several: train+test
    table: SampleTable
    predictor: Predictor
    block: dict[str, Any]


def evaluate_run(run: TrainedRun, options: EvaluateOptions, console: Console) -> Evaluated:
    """Evaluate one run as `options` say and write what was found; errors as those of `measure_run`."""
    if run.step < run.config.steps:
        console.print(f"weights of step {run.step} of {run.config.steps}", highlight=False)
    folder = results_folder(run, options)  # one that can't be made is told before the work
    found = measure_run(run, options, console)
    if found.split in load_result(folder).get("splits", {}) and other_data(run, options):
        console.print(f"{folder}: results of {found.split} replaced; output=FOLDER keeps both", highlight=False)
    write_result(folder, found.split, run.step, found.block)
    if options.report:
        run.storage.fetch(METRICS, VALIDATION)
        write_report(run, folder, found.split, found.table, found.block, found.predictor)
    if folder == run.path:
        run.storage.publish(RESULT, RESULT_TEXT, REPORT, PREDICTIONS, RELEASED_PREDICTIONS)
    return found


def results_folder(run: TrainedRun, options: EvaluateOptions) -> Path:
    """Return the folder for what is written; errors as those of `made`."""
    return made(Path(options.output).absolute() if options.output else run.path)


def made(folder: Path) -> Path:
    """Make a folder, where it isn't there yet, and return it; raises UsageError where that can't be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"output={folder}: no folder can be made there ({error.strerror})") from error
    return folder


def measure_run(run: TrainedRun, options: EvaluateOptions, console: Console) -> Evaluated:
    """Measure one run on the objects that `options` choose; of what is written, only the predictions.

    Raises:
        UsageError: the dataset doesn't fit the network, or has no such split, category or shard.
        DataError: a damaged sample.
    """
    index = load_index(options.data or run.config.data.path)
    if index.image_size != run.image_size:
        raise UsageError(
            f"data={index.root}: images of {index.image_size} pixels; the run was trained on {run.image_size}"
        )
    split, shards = chosen(options)
    table = SampleTable.select(index, split, options.categories, shards)
    name = "+".join(each for each in SPLITS if any(index.shards[shard].split == each for shard, _ in table.places))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = subject_predictor(TRAINED, run, device)
    frames: dict[str, Tensor] = {}
    if run.config.pose.mode != "known":
        frames = predicted_frames(run, index, device, skips(run, options))
        predictor = aligned(predictor, frames)
    save = None
    if options.predictions or options.mat:
        save = functools.partial(save_predictions, results_folder(run, options), options)
    job, crew = first_job(run, index, options, frames), Crew(options.workers, "ray")
    with session(crew):
        block = measure(predictor, table, job, crew, save, f"{name}: trained", console)
        if frames:
            block["poses"] = pose_metrics(rotations(run, table, device, skip=job.skip), frames)
        if options.references:
            block["references"] = references(run, table, job, options, name, console, device)
    part = {"data": other_data(run, options), "categories": list(options.categories), "shards": list(shards)}
    if any(part.values()):
        block["selection"] = {what: names for what, names in part.items() if names}
    return Evaluated(name, table, predictor, block)


def other_data(run: TrainedRun, options: EvaluateOptions) -> list[str]:
    """Return the dataset that the options ask for, where the run was trained on another one."""
    if not options.data or absolute(options.data) == absolute(run.config.data.path):
        return []
    return [absolute(options.data)]


def chosen(options: EvaluateOptions) -> tuple[str | None, tuple[str, ...]]:
    """Return the split (None: that of the shards) and the patterns of the shards that the options ask for."""
    shards = tuple(name.strip() for name in (options.shards or "").split(",") if name.strip())
    return options.split or (None if shards else "test"), shards


def skips(run: TrainedRun, options: EvaluateOptions) -> bool:
    """Say whether damaged objects are left out."""
    return options.skip_bad or run.config.data.on_bad_sample == "skip"


def first_job(run: TrainedRun, index: DatasetIndex, options: EvaluateOptions, frames: dict[str, Tensor]) -> Job:
    """Return what a worker needs to know to measure the trained network."""
    told = tuple((name, tuple(frame.double().flatten().tolist())) for name, frame in frames.items())
    split, shards = chosen(options)
    return Job(
        subject=Subject(TRAINED, run.storage.address, str(run.step), told),
        data=absolute(index.root),
        split=split,
        categories=tuple(options.categories),
        shards=shards,
        numbers=(),
        background=run.config.data.background,
        earth_mover=options.earth_mover,
        keep_points=options.predictions or options.mat,
        skip=skips(run, options),
    )


def predicted_frames(run: TrainedRun, index: DatasetIndex, device: torch.device, skip: bool) -> dict[str, Tensor]:
    """Return the rotation [3, 3] from the frame that the network chose for each category to the object frame.

    Found on the training split, so that what is evaluated has no say in it.
    """
    training = SampleTable.select(index, run.config.data.split, run.config.data.categories)
    return alignments(rotations(run, training, device, limit=ALIGNED_OBJECTS, skip=skip))


def save_predictions(run: Path, options: EvaluateOptions, key: str, points: Tensor) -> None:
    """Write the predictions [V, N, 3] of one object in the formats that the options ask for."""
    for view, cloud in enumerate(points if options.predictions else ()):
        write_ply(run / PREDICTIONS / f"{key}.{view:02d}.ply", cloud.numpy())
    if options.mat:
        write_mat(run / RELEASED_PREDICTIONS / f"{key}_pc.mat", points.numpy())


def references(
    run: TrainedRun,
    table: SampleTable,
    job: Job,
    options: EvaluateOptions,
    split: str,
    console: Console,
    device: torch.device,
) -> dict[str, Any]:
    """Measure what a reader compares with: the untrained network, and each category's mean shape."""
    crew, blocks = Crew(options.workers, "ray"), {}
    subject = dataclasses.replace(job.subject, frames=())
    untrained = dataclasses.replace(job, subject=dataclasses.replace(subject, kind=UNTRAINED), keep_points=False)
    predictor = subject_predictor(UNTRAINED, run, device)
    blocks["untrained"] = measure(predictor, table, untrained, crew, None, f"{split}: untrained", console)
    shapes, problems = mean_shapes(table, run.config.model.points, run.config.seed)
    if problems:
        without = "" if shapes else ", so there is none"
        line = f"mean shape: {len(problems)} training objects can't be read{without}; the first: {problems[0]}"
        console.print(line, highlight=False, soft_wrap=True)
    if shapes:
        subject = dataclasses.replace(subject, kind=MEAN_SHAPE)
        mean = dataclasses.replace(job, subject=subject, keep_points=False, shapes=shapes)
        title = f"{split}: mean shape"
        blocks["mean_shape"] = measure(constant(shapes), table, mean, crew, None, title, console)
        blocks["mean_shape"] |= {"training_objects_left_out": len(problems)} if problems else {}
    for block in blocks.values():
        del block["objects"]
    return blocks


def mean_shapes(table: SampleTable, points: int, seed: int) -> tuple[dict[str, NDArray[np.float32]], list[str]]:
    """Return, per category of `table`, a random subset [points, 3] of all its training objects' ground truths.

    This reference has seen 3D, which training never does. Empty where a category has no training ground truth, and
    where too many objects can't be read: the storage may be away.

    Returns:
        The shapes, and why the training objects that are left out can't be read.
    """
    categories = sorted({key.split("/")[0] for key in table.keys})
    shapes: dict[str, NDArray[np.float32]] = {}
    problems: list[str] = []
    for category in categories:
        if not table.index.select("train", [category]):
            return {}, problems
        training = SampleTable.select(table.index, "train", [category])
        known = []
        for number in range(len(training.keys)):
            try:
                cloud = training.read(number, views=[0], with_points=True).points
            except DataError as error:  # what is measured is sound: a reference must not take its numbers away
                problems.append(str(error))
                if len(problems) > MOST_UNREAD:
                    return {}, problems
                continue
            known += [] if cloud is None else [cloud]
        if not known:
            return {}, problems
        union = np.concatenate(known)
        chosen = np.random.default_rng(seed).choice(len(union), points, replace=len(union) < points)
        shapes[category] = union[chosen]
    return shapes, problems


def compare_runs(options: EvaluateOptions, console: Console) -> int:
    """Measure several runs on the same objects, where that is not done yet, and write what tells them apart."""
    names = [name.strip() for name in str(options.runs).split(",") if name.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"runs={options.runs}: give at least two different runs, separated by commas")
    short = [name.rstrip("/").rsplit("/", 1)[-1] for name in names]
    labels = short if len(set(short)) == len(names) else names
    runs = [load_run(located(name), options.checkpoint) for name in names]  # told before the work
    folder = made(Path(options.output or COMPARISON))
    known, split = [known_block(run, options) for run in runs], chosen(options)[0] or str(options.shards)
    if len({tuple(selected_categories(block)) for block in known}) > 1:  # all of these, or none of a part
        known = [None if selected_categories(block) else block for block in known]
    blocks = {
        label: (block or measure_anew(run, options, console))["objects"]
        for label, run, block in zip(labels, runs, known, strict=True)
    }
    table = compare(blocks)
    table["weights"] = {
        label: {"step": run.step, "steps": run.config.steps} for label, run in zip(labels, runs, strict=True)
    }
    print_comparison(console, split, table)
    for path in write_comparison(folder, split, table):
        console.print(f"written: {path}", soft_wrap=True, highlight=False)
    return 0


def known_block(run: TrainedRun, options: EvaluateOptions) -> dict[str, Any] | None:
    """Return what an earlier evaluation of the same weights found, where it answers the same question."""
    if options.data or options.categories or options.shards or options.earth_mover:
        return None
    result = load_result(run.path)
    block = result.get("splits", {}).get(chosen(options)[0]) if result.get("step") == run.step else None
    if not block or block.get("skipped") or {"data", "shards"} & set(block.get("selection", {})):
        return None
    return dict(block)


def selected_categories(block: dict[str, Any] | None) -> list[str]:
    """Return the categories that an evaluation was asked for; none: all, or there was no evaluation."""
    return sorted((block or {}).get("selection", {}).get("categories", []))


def measure_anew(run: TrainedRun, options: EvaluateOptions, console: Console) -> dict[str, Any]:
    """Measure a run for a comparison; its results are left as they are."""
    single = dataclasses.replace(options, references=False, report=False, predictions=False, mat=False)
    return measure_run(run, single, console).block


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = load_options(EvaluateOptions, arguments, verb="evaluate")
    if not 0 <= options.earth_mover <= EARTH_MOVER_POINTS:
        raise UsageError(f"earth_mover={options.earth_mover}: must be between 0 (none) and {EARTH_MOVER_POINTS} points")
    if options.workers < 0:
        raise UsageError(f"workers={options.workers}: must be 0 (all cores) or more")
    if options.split not in (None, *SPLITS):
        raise UsageError(f"split={options.split}: choose one of {', '.join(SPLITS)}")
    if (options.run is None) == (options.runs is None):
        raise UsageError("evaluate: give run=FOLDER, or runs=FOLDER,FOLDER,… to compare")
    console = terminal.console()
    if options.run is None:
        return compare_runs(options, console)
    run = load_run(located(options.run), options.checkpoint)
    if run.path == FOLDER and not options.output:
        raise UsageError(f"run={NAME}: the package's folder is not for results; give output=FOLDER")
    found = evaluate_run(run, options, console)
    print_table(console, found.split, found.block)
    place = options.output or run.storage.address
    for name in (RESULT, REPORT) if options.report else (RESULT,):
        console.print(f"written: {place}/{name}", soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    # The importable module, not this one that is called __main__: workers look for what they are sent there.
    from drwr_dist.evaluate import main as importable_main

    run_verb(importable_main)
