"""`python -m drwr_dist.export`: a trained network as ONNX or torch.export, to run without this package; or small."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from drwr_dist import terminal
from drwr_dist.cli import load_options, run_verb
from drwr_dist.errors import TrainingError, UsageError
from drwr_dist.pretrained import located, write_weights
from drwr_dist.run import TrainedRun, load_run

SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-5  # sides of the unit cube, between the exported network and ours
CHECKED_IMAGES = 3
OPSET = 18


@dataclass
class ExportOptions:
    """Write a trained network as one file: images float32 [B, 3, H, W] in [0, 1] to points [B, N, 3], any B."""

    run: str = "???"  # folder of the run: <storage>/<name>; pretrained: the network that comes with the package
    checkpoint: str = "auto"  # auto | last | best | STEP: which weights; auto: those of the run's evaluation.checkpoint
    format: str = "onnx"  # onnx | torch | run: ONNX, a torch.export archive (.pt2), or a small run's folder, to hand on
    output: str | None = None  # file; none: <run's name>.onnx or .pt2, here. Of format=run: the folder, which is needed


def export(network: torch.nn.Module, image_size: int, path: Path, kind: str) -> None:
    """Write a network to `path` as `kind` (onnx | torch)."""
    network = network.eval().float().cpu()
    images = torch.rand(2, 3, image_size, image_size)
    shapes = {"images": {0: torch.export.Dim("batch", min=1, max=4096)}}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells which packages of others are not installed
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (images,), dynamic_shapes=shapes)
        if kind == "torch":
            torch.export.save(program, partial)
        else:
            names: dict[str, Any] = {"input_names": ["images"], "output_names": ["points"]}
            made = torch.onnx.export(program, **names, opset_version=OPSET, dynamo=True, verbose=False)
            assert made is not None
            partial.write_bytes(made.model_proto.SerializeToString())
    partial.replace(path)


def run_exported(path: Path, kind: str, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run an exported file on images [B, 3, H, W] and return points [B, N, 3]."""
    if kind == "torch":
        module = torch.export.load(path).module()
        with torch.no_grad():
            return np.asarray(module(torch.from_numpy(images)).numpy(), dtype=np.float32)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["points"], {"images": images})[0], dtype=np.float32)


def difference(network: torch.nn.Module, image_size: int, path: Path, kind: str) -> float:
    """Return the largest difference of a coordinate between an exported file and the network, on random images."""
    images = torch.rand(CHECKED_IMAGES, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(images).numpy()
    return float(np.abs(run_exported(path, kind, images.numpy()) - expected).max())


def main(arguments: Sequence[str]) -> int:
    """Run the verb."""
    options = load_options(ExportOptions, arguments, verb="export")
    if options.format not in (*SUFFIX, "run"):
        raise UsageError(f"format={options.format}: choose one of {', '.join((*SUFFIX, 'run'))}")
    if options.format == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise UsageError("format=onnx: needs more packages; pip install 'drwr-dist[export]', or take format=torch")
    run = load_run(located(options.run), options.checkpoint)
    if options.format == "run":
        return _export_run(run, options.output)
    path = Path(options.output or run.path.name + SUFFIX[options.format])
    try:
        export(run.model, run.image_size, path, options.format)
    except OSError as error:
        raise UsageError(f"output={path}: can't be written ({error.strerror})") from error
    found = difference(run.model, run.image_size, path, options.format)
    if not found <= TOLERANCE:
        raise TrainingError(f"{path}: points differ by {found:.1e} from the network's, more than {TOLERANCE:g}")
    size = run.image_size
    Console().print(
        f"written: {terminal.short(path)}  images float32 [B, 3, {size}, {size}] in [0, 1] -> points "
        f"[B, {run.config.model.points}, 3]; differs from the network by at most {found:.1e}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _export_run(run: TrainedRun, output: str | None) -> int:
    """Write a run without what only its training needs."""
    if output is None:
        raise UsageError("output: format=run needs a folder, output=DIR")
    folder = Path(output)
    if folder.resolve() == run.path.resolve():
        raise UsageError(f"output={output}: that is the run itself; choose another folder")
    write_weights(run, folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    Console().print(f"written: {terminal.short(folder)}  {size:.1f} MB, weights in half precision", soft_wrap=True)
    return 0


if __name__ == "__main__":
    run_verb(main)
