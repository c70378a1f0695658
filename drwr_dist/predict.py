"""`python -m drwr_dist.predict`: turn images into point clouds with a trained run."""

from __future__ import annotations

import functools
import glob
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from drwr_dist import terminal
from drwr_dist.cli import load_options, run_verb
from drwr_dist.counting import counted
from drwr_dist.errors import DataError, UsageError
from drwr_dist.inference import CROPS, ImageToPoints, load
from drwr_dist.point_cloud import WRITERS
from drwr_dist.pool import Crew, run_ordered
from drwr_dist.pretrained import located
from drwr_dist.turntable import FORMATS, require_encoder, write_turntable

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}


@dataclass
class PredictOptions:
    """Turn images into point clouds; writes <output>/<image stem>.ply."""

    run: str = "pretrained"  # folder of the run: <storage>/<name>; pretrained: the network that comes with the package
    checkpoint: str = "auto"  # auto | last | best | STEP: which weights; auto: those of the run's evaluation.checkpoint
    images: str = "???"  # an image file, a folder of images, or a glob pattern
    masks: str | None = None  # a mask file, folder or glob; of a.jpg: a.png, a.mask.png or a_mask.png; none: alpha
    output: str = "predictions"  # folder for the point clouds
    format: str = "ply"  # ply | obj | glb | npz | csv
    crop: str = "auto"  # auto | always | never: reframe the object (by its alpha) as training images are framed
    turntable: str = "false"  # false | true | gif | mp4: write the points, turning, to <image stem>.gif (true) or .mp4
    batch: int = 16  # images that go through the network at once
    workers: int = 1  # 1: this process; more, or 0 for all cores: Ray tasks, on the cluster of RAY_ADDRESS or here


@dataclass(frozen=True)
class Task:
    """One image, the mask that cuts it out, and the file that it becomes."""

    image: Path
    mask: Path | None
    target: Path


@dataclass(frozen=True)
class Job:
    """Images that go through the network together."""

    tasks: tuple[Task, ...]
    options: PredictOptions


@dataclass
class Outcome:
    """What became of an image."""

    problem: str | None = None  # why it could not be used
    warnings: list[str] = field(default_factory=list)


def find_images(pattern: str, key: str = "images") -> list[Path]:
    """Return the image files that a path, a folder or a glob pattern names.

    Raises:
        UsageError: there are none.
    """
    path = Path(pattern)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
    elif path.exists():
        found = [path]
    else:
        names = (Path(name) for name in glob.glob(pattern, recursive=True))
        found = sorted(file for file in names if file.is_file() and file.suffix.lower() in SUFFIXES)
    if not found:
        raise UsageError(f"{key}={pattern}: no image there (known: {', '.join(sorted(SUFFIXES))})")
    return found


def plan(options: PredictOptions) -> tuple[list[Task], list[str]]:
    """Say which image becomes which file; and a line for each image that can't."""
    images = find_images(options.images)
    masks = find_images(options.masks, "masks") if options.masks else []
    images = without_masks(images)  # images and masks in one folder: what is named as a mask is none of the images
    own = {path.resolve() for path in images}
    masks = [path for path in masks if path.resolve() not in own]  # no image is its own mask
    single = len(masks) == len(images) == 1
    by_stem = {stem_of_mask(path): path for path in masks}
    tasks: dict[Path, Task] = {}
    problems = []
    for path in images:
        target = Path(options.output).absolute() / f"{path.stem}.{options.format}"
        mask = masks[0] if single else by_stem.get(path.stem) or by_stem.get(stem_of_image(path))
        written = {target, target.with_suffix(f".{turntable_format(options)}")}
        if written & {each.absolute() for each in (*images, *masks)}:
            problems.append(f"{path}: its points would be written over an image that is read; choose another output=")
        elif target in tasks:
            problems.append(f"{path}: {target} is made from {tasks[target].image} already; rename one of the images")
        elif options.masks and mask is None:
            problems.append(f"{path}: masks={options.masks} has none of this name ({path.stem}.png, for example)")
        else:
            tasks[target] = Task(path.absolute(), mask.absolute() if mask else None, target)
    return list(tasks.values()), problems


def stem_of_mask(path: Path) -> str:
    """Return the stem of the image that a mask belongs to: a of a.mask.png."""
    return path.stem.removesuffix("_mask").removesuffix(".mask")


def stem_of_image(path: Path) -> str:
    """Return the stem that an image shares with its mask: a of a.image.png, as shards name them."""
    return path.stem.removesuffix("_image").removesuffix(".image")


def without_masks(images: list[Path]) -> list[Path]:
    """Leave out what is named as the mask of another image beside it: a.mask.png beside a.png."""
    owners = {(path.parent, stem) for path in images for stem in (path.stem, stem_of_image(path))}
    return [
        path for path in images if stem_of_mask(path) == path.stem or (path.parent, stem_of_mask(path)) not in owners
    ]


@functools.lru_cache(maxsize=1)
def _loaded(run: str, checkpoint: str) -> ImageToPoints:
    """Load a run once per process."""
    return load(run, checkpoint)


def predict_job(job: Job) -> list[Outcome]:
    """Predict the images of a job and write their files; return what is to be said of each image."""
    network = _loaded(job.options.run, job.options.checkpoint)
    outcomes = [Outcome() for _ in job.tasks]
    usable, inputs = [], []
    for place, task in enumerate(job.tasks):
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always", UserWarning)
            try:
                inputs.append(network.prepare(task.image, task.mask, job.options.crop))
                usable.append(place)
            except DataError as error:
                outcomes[place].problem = str(error)
        outcomes[place].warnings = [str(each.message) for each in raised if each.category is UserWarning]
    if not inputs:
        return outcomes
    for place, points in zip(usable, network.batch(inputs), strict=True):
        target = job.tasks[place].target
        try:
            WRITERS[job.options.format](target, points)
            if kind := turntable_format(job.options):
                write_turntable(target.with_suffix(f".{kind}"), points, kind)
        except OSError as error:
            outcomes[place].problem = f"{error.filename or target}: can't be written ({error.strerror})"
    return outcomes


def predict(options: PredictOptions, console: Console) -> Iterator[tuple[Task, Outcome]]:
    """Predict every image; yield each with what is to be said of it."""
    tasks, problems = plan(options)
    for problem in problems:
        yield Task(Path(), None, Path()), Outcome(problem)
    if options.workers == 1:
        _loaded(options.run, options.checkpoint)  # a run that is not there is told before the progress starts
    chunks = [tuple(tasks[first : first + options.batch]) for first in range(0, len(tasks), options.batch)]
    crew = Crew(options.workers, "ray")
    outcomes = run_ordered(predict_job, [Job(chunk, options) for chunk in chunks], crew)
    shown = counted(outcomes, "predicting, batch", len(chunks), console)
    for chunk, found in zip(chunks, shown, strict=True):
        yield from zip(chunk, found, strict=True)


def main(arguments: Sequence[str]) -> int:
    """Run the verb: 0 where every image became a point cloud, else 1."""
    options = load_options(PredictOptions, arguments, verb="predict")
    check(options)
    options.run = located(options.run)
    console = terminal.console()
    failed = False
    for task, outcome in predict(options, console):
        for warning in outcome.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if outcome.problem:
            failed = True
            print(f"error: {outcome.problem}", file=sys.stderr)
        else:
            console.print(f"written: {terminal.short(task.target)}", soft_wrap=True, highlight=False)
    return int(failed)


def turntable_format(options: PredictOptions) -> str | None:
    """Return gif or mp4, or None where no turntable is wanted; raises UsageError for anything else."""
    wanted = str(options.turntable).lower()
    found = {"false": None, "true": "gif", **{kind: kind for kind in FORMATS}}
    if wanted not in found:
        raise UsageError(f"turntable={options.turntable}: choose one of {', '.join(found)}")
    return found[wanted]


def check(options: PredictOptions) -> None:
    """Raise UsageError for the first option that can't work."""
    if turntable_format(options) == "mp4":
        require_encoder()
    if options.format not in WRITERS:
        raise UsageError(f"format={options.format}: choose one of {', '.join(WRITERS)}")
    if options.crop not in CROPS:
        raise UsageError(f"crop={options.crop}: choose one of {', '.join(CROPS)}")
    if options.batch < 1:
        raise UsageError(f"batch={options.batch}: must be at least 1")
    if options.workers < 0:
        raise UsageError(f"workers={options.workers}: must be 0 (all cores) or more")
    find_images(options.images)


if __name__ == "__main__":
    # The importable module, not this one that is called __main__: workers look for what they are sent there.
    from drwr_dist.predict import main as importable_main

    run_verb(importable_main)
