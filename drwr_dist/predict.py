"""`python -m drwr_dist.predict`: turn images into point clouds with a trained run."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from drwr_dist.cli import load_options, run_verb
from drwr_dist.data.stream import as_tensor
from drwr_dist.errors import DataError, UsageError
from drwr_dist.images import prepare
from drwr_dist.point_cloud import write_npz, write_ply
from drwr_dist.run import TrainedRun, load_run

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
WRITERS = {"ply": write_ply, "npz": write_npz}


@dataclass
class PredictOptions:
    """Turn images into point clouds; writes <output>/<image stem>.ply."""

    run: str = "???"  # folder of the run: <storage>/<name>
    checkpoint: str = "last"  # last | best | STEP: which of the run's weights; best by the validation metric
    images: str = "???"  # an image file, a folder of images, or a glob pattern
    output: str = "predictions"  # folder for the point clouds
    format: str = "ply"  # ply | npz
    crop: str = "auto"  # auto | always | never: reframe the object (by its alpha) as training images are framed


def find_images(pattern: str) -> list[Path]:
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
        found = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    if not found:
        raise UsageError(f"images={pattern}: no image there (known: {', '.join(sorted(SUFFIXES))})")
    return found


@torch.no_grad()
def predict_points(run: TrainedRun, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Predict points [N, 3], object frame, from one prepared image uint8 [H, H, 3] (see `drwr_dist.images`)."""
    parameter = next(run.model.parameters())
    points = run.model(as_tensor(image)[None].to(parameter))[0]
    return np.asarray(points.float().cpu().numpy(), dtype=np.float32)


def predict(run: TrainedRun, options: PredictOptions, console: Console) -> tuple[list[Path], list[str]]:
    """Predict every image; return the files written and a line for each image that could not be used."""
    written: dict[Path, Path] = {}
    problems = []
    for path in track(
        find_images(options.images), "predicting", console=console, transient=True, disable=not console.is_terminal
    ):
        target = Path(options.output) / f"{path.stem}.{options.format}"
        if target in written:
            problems.append(f"{path}: {target} was already made from {written[target]}; rename one of the images")
            continue
        try:
            image = prepare(path, run.image_size, run.config.data.background, options.crop)
        except DataError as error:
            problems.append(str(error))
            continue
        WRITERS[options.format](target, predict_points(run, image))
        written[target] = path
    return list(written), problems


def main(arguments: Sequence[str]) -> int:
    """Run the verb: 0 where every image became a point cloud, else 1."""
    options = load_options(PredictOptions, arguments, verb="predict")
    if options.format not in WRITERS:
        raise UsageError(f"format={options.format}: choose one of {', '.join(WRITERS)}")
    if options.crop not in ("auto", "always", "never"):
        raise UsageError(f"crop={options.crop}: choose one of auto, always, never")
    find_images(options.images)
    console = Console()
    written, problems = predict(load_run(options.run, options.checkpoint), options, console)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    run_verb(main)
