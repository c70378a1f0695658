"""Where a run's first weights come from, when not from chance: another run, or a checkpoint of the authors' code."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from drwr_dist import checkpoint
from drwr_dist.config import TrainConfig
from drwr_dist.errors import DataError, UsageError
from drwr_dist.model import HALVINGS, build_network, tensorflow_name
from drwr_dist.pretrained import located
from drwr_dist.tf_checkpoint import Checkpoint, open_checkpoint

TF_PREFIX = "tf_checkpoint:"
SCALE = "decoder/fully_connected_3"
SCALE_IN_DPC = "decoder/fully_connected_1"  # DPC's own code builds no z and b heads before it


def initial_weights(init: str, config: TrainConfig, image_size: int) -> dict[str, Tensor]:
    """Read the weights with which a run starts.

    Args:
        init: `tf_checkpoint:PREFIX` (see `drwr_dist.tf_checkpoint.open_checkpoint`), the folder of a run, or
            `pretrained`.
        config: of the run that starts; its network decides which variables are read.
        image_size: pixels, of its images.

    Returns:
        A state for the network's `load_state_dict`, float32 (a run's own dtype, where it is a run).

    Raises:
        UsageError: there is nothing at `init`, or a variable is missing or of another shape than the network's:
            the message names it and the key to change.
        DataError: the files are damaged.
        TrainingError: every checkpoint of the run is damaged.
    """
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in build_network(config, image_size).named_parameters()}
    is_tensorflow = init.startswith(TF_PREFIX)
    found = _of_tensorflow(init, wanted) if is_tensorflow else _of_run(init, wanted)
    for name, shape in wanted.items():
        called = tensorflow_name(name) if is_tensorflow else name
        if tuple(found[name].shape) != shape:
            raise UsageError(
                f"init={init}: {called} has {_inputs_outputs(tuple(found[name].shape))}, this run's network "
                f"{_inputs_outputs(shape)}; {_remedy(name, tuple(found[name].shape), shape, config.model.channels)}"
            )
        if not bool(torch.isfinite(found[name]).all()):
            raise DataError(f"init={init}: {called} holds numbers that are not finite: that training had failed")
    return found


def _of_run(init: str, wanted: Mapping[str, object]) -> dict[str, Tensor]:
    loaded = checkpoint.load_newest(located(init))
    if loaded is None:
        raise UsageError(
            f"init={init}: no run with a checkpoint there; give the folder <storage>/<name> of a training run, or "
            f"{TF_PREFIX}PREFIX for a TensorFlow checkpoint"
        )
    state = loaded.state["model"]
    for name in wanted:
        if name not in state:
            raise UsageError(f"init={init}: has no variable {name}{_without(name)}")
    return {name: state[name] for name in wanted}


def _of_tensorflow(init: str, wanted: Mapping[str, object]) -> dict[str, Tensor]:
    source = open_checkpoint(init.removeprefix(TF_PREFIX))
    state = {}
    for name in wanted:
        called = _name_in(source, tensorflow_name(name))
        if called not in source.variables:
            raise UsageError(f"init={init}: has no variable {called}{_without(name)}")
        value = source.read(called)
        # Convolutions are [h, w, in, out] there and [out, in, h, w] here, dense layers [in, out] and [out, in].
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        state[name] = torch.from_numpy(np.array(value, dtype=np.float32))
    return state


def _name_in(source: Checkpoint, name: str) -> str:
    """Return the checkpoint's name of a variable: DPC's own have another number for the scale of the occupancies."""
    layer, _, kind = name.rpartition("/")
    other = source.variables.get(f"{SCALE_IN_DPC}/weights")
    if layer == SCALE and name not in source.variables and other is not None and other.shape[-1:] == (1,):
        return f"{SCALE_IN_DPC}/{kind}"
    return name


def _without(name: str) -> str:
    return "; set model.scale_head=false" if "fully_connected_3" in name else ": not a network of this architecture"


def _inputs_outputs(shape: tuple[int, ...]) -> str:
    """Say what the shape of a weight or bias means, whatever the order of its axes."""
    if len(shape) not in (1, 2, 4):
        return f"the shape {list(shape)}"
    if len(shape) == 1:
        return f"{shape[0]} outputs"
    kernel = f" of {shape[2]} × {shape[3]}" if len(shape) == 4 else ""
    return f"{shape[1]} inputs and {shape[0]} outputs{kernel}"


def _remedy(name: str, found: tuple[int, ...], wanted: tuple[int, ...], channels: int) -> str:
    """Name the key that would make the shapes agree."""
    if len(found) != len(wanted) or 0 in found:
        return "not a network of this architecture"
    if name.startswith("encoder.Conv"):
        layer = int(name.split(".")[1].removeprefix("Conv").removeprefix("_") or 0)
        base = found[0] // 2 ** ((layer + 1) // 2)
        return f"set model.channels={base}" if base and base != channels else "not a network of this architecture"
    if name.startswith("decoder.fully_connected.") and found[0] != wanted[0] and found[0] % 3 == 0:
        return f"set model.points={found[0] // 3}"
    if name.startswith("encoder.fully_connected.") and found[0] == wanted[0]:
        side = round((found[1] / (2 ** (HALVINGS - 1) * channels)) ** 0.5) * 2**HALVINGS
        return f"it was trained on images of {side} pixels: import the data with image_size={side}"
    hidden = found[1] if name.startswith("decoder") and len(found) == 2 else found[0]
    return f"set model.hidden={hidden}"
