"""Measuring predictions on many objects, here or on Ray workers: the same numbers with any number of them.

Each object is read, predicted and scored by itself; scores are brought into the order of the objects and averaged at
one place. So neither the number of workers nor which of them scored what can change a digit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from drwr_dist.counting import counted
from drwr_dist.data.batch import as_tensor
from drwr_dist.data.index import load_index
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.errors import DataError
from drwr_dist.pool import Crew, run_ordered
from drwr_dist.poses import alignment_of
from drwr_dist.run import TrainedRun, load_run, untrained_model
from drwr_dist.scores import Predictor, object_metrics, summarise

TRAINED, UNTRAINED, MEAN_SHAPE = "trained", "untrained", "mean shape"
CHUNK = 8  # objects per job

# key of an object, its predictions [V, N, 3]
Save = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Subject:
    """What is measured, in words that other processes understand."""

    kind: str  # TRAINED | UNTRAINED | MEAN_SHAPE
    run: str  # folder or URL
    checkpoint: str
    frames: tuple[tuple[str, tuple[float, ...]], ...] = ()  # alignments per category, where the network chose its frame


@dataclass(frozen=True)
class Job:
    """Some objects of a dataset."""

    subject: Subject
    data: str
    split: str | None  # None: of any
    categories: tuple[str, ...]
    shards: tuple[str, ...]  # glob patterns
    numbers: tuple[int, ...]
    background: float
    earth_mover: int
    keep_points: bool  # whether the predictions are wanted, not their scores alone
    skip: bool = False  # leave damaged objects out, instead of failing
    shapes: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # category -> mean shape


@dataclass(frozen=True)
class Unread:
    """A damaged object that is left out."""

    key: str
    reason: str


Scored = tuple[str, dict[str, float], Tensor | None]  # key, scores, predictions


def measure(
    predictor: Predictor, table: SampleTable, job: Job, crew: Crew, save: Save | None, title: str, console: Console
) -> dict[str, Any]:
    """Run a predictor on every object and view of `table` and average what it scores.

    Args:
        predictor: images of one object to points; used where there is one worker.
        table: the objects.
        job: what other workers need to know to do the same; its `numbers` are filled in here.
        crew: who does it.
        save: takes an object's predictions; None: they are not wanted.
        title: of the progress bar.
        console: where the bar is drawn.

    Returns:
        As `drwr_dist.scores.summarise`; with damaged objects left out, `skipped` says why each is.

    Raises:
        DataError: a damaged sample (with `job.skip`, all are), or a prediction that is not finite.
    """
    numbers = range(len(table.keys))
    torch.set_num_threads(1)  # many small operations: threads would cost more than they give
    scored: Iterator[Scored | Unread]
    if crew.workers == 1:
        scored = (score(predictor, table, number, job) for number in numbers)
    else:
        jobs = [_chunk(job, table, numbers[first : first + CHUNK]) for first in range(0, len(numbers), CHUNK)]
        scored = (each for chunk in run_ordered(score_job, jobs, crew) for each in chunk)
    if not console.is_terminal:
        console.print(f"evaluating {title} ({len(numbers)} objects)", highlight=False)
    objects, skipped = {}, {}
    for found in counted(scored, title, len(numbers), console):
        if isinstance(found, Unread):
            skipped[found.key] = found.reason
            continue
        key, scores, points = found
        objects[key] = scores
        if save and points is not None:
            save(key, points)
    if not skipped:
        return summarise(objects, table.index.views)
    if not objects:
        raise DataError(f"{title}: every object is damaged; the first: {next(iter(skipped.values()))}")
    line = f"{title}: {len(skipped)} damaged objects are left out; the first: {next(iter(skipped.values()))}"
    console.print(line, highlight=False, soft_wrap=True)
    return summarise(objects, table.index.views) | {"skipped": skipped}


def measure_here(predictor: Predictor, table: SampleTable, background: float = 1.0) -> dict[str, Any]:
    """Run any predictor on every object and view of `table` in this process, without a run on disk; as `measure`.

    Args:
        predictor: images of one object [V, 3, H, W], and its category, to points [V, N, 3], object frame.
        table: the objects.
        background: grey level 0 … 1 behind the object.

    Raises:
        DataError: a damaged sample, or a prediction that is not finite.
    """
    job = Job(Subject("", "", ""), "", None, (), (), (), background, earth_mover=0, keep_points=False)
    return measure(predictor, table, job, Crew(1), None, "", Console(quiet=True))


def score(predictor: Predictor, table: SampleTable, number: int, job: Job) -> Scored | Unread:
    """Read, predict and score one object."""
    try:
        sample = table.read(number, with_points=True)
    except DataError as error:
        if job.skip:
            return Unread(table.keys[number], str(error))
        raise
    images = composite(sample.images, sample.masks, job.background)
    points = predictor(torch.stack([as_tensor(image) for image in images]), sample.key.split("/")[0])
    if not torch.isfinite(points).all():
        raise DataError(f"{sample.key}: the network's prediction is not finite")
    shared = len(points) < len(images)
    return sample.key, object_metrics(points, sample, job.earth_mover, shared), points if job.keep_points else None


def _chunk(job: Job, table: SampleTable, numbers: Sequence[int]) -> Job:
    categories = {table.keys[number].split("/")[0] for number in numbers}
    shapes = {name: shape for name, shape in job.shapes.items() if name in categories}
    return Job(**{**vars(job), "numbers": tuple(numbers), "shapes": shapes})


def score_job(job: Job) -> list[Scored | Unread]:
    """Score the objects of a job, in a worker."""
    torch.set_num_threads(1)
    table = _table(job.data, job.split, job.categories, job.shards)
    predictor = constant(job.shapes) if job.subject.kind == MEAN_SHAPE else _predictor(job.subject)
    return [score(predictor, table, number, job) for number in job.numbers]


@functools.lru_cache(maxsize=2)
def _table(data: str, split: str | None, categories: tuple[str, ...], shards: tuple[str, ...]) -> SampleTable:
    return SampleTable.select(load_index(data), split, categories, shards)


@functools.lru_cache(maxsize=2)
def _predictor(subject: Subject) -> Predictor:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = load_run(subject.run, subject.checkpoint)
    predictor = subject_predictor(subject.kind, run, device)
    frames = {name: torch.tensor(values, dtype=torch.float64).view(3, 3) for name, values in subject.frames}
    return aligned(predictor, frames) if frames else predictor


def subject_predictor(kind: str, run: TrainedRun, device: torch.device) -> Predictor:
    """Return the trained network of a run, or the untrained one that it began with."""
    model = run.model if kind == TRAINED else untrained_model(run.config, run.image_size)
    return network_predictor(model.to(device), device)


def network_predictor(model: torch.nn.Module, device: torch.device) -> Predictor:
    """Wrap a network for `measure`."""
    dtype = next(model.parameters()).dtype

    @torch.no_grad()
    def predict(images: Tensor, category: str) -> Tensor:
        points: Tensor = model(images.to(device, dtype))
        return points.float().cpu()

    return predict


def constant(shapes: dict[str, NDArray[np.float32]]) -> Predictor:
    """Return a predictor that knows the category alone; the same for every view, so it is measured once."""
    return lambda images, category: torch.from_numpy(shapes[category])[None]


def aligned(predictor: Predictor, frames: dict[str, Tensor]) -> Predictor:
    """Wrap a predictor whose points are to be rotated by the alignment of their category."""
    return lambda images, category: predictor(images, category) @ alignment_of(frames, category).mT.float()
