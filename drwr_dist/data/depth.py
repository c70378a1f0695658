"""Depth images in shards: `<view>.depth.png`, 16-bit grey, for those who want more than silhouettes.

A level is a depth along the camera's z axis in steps of `depth_step` (object units, in meta.json); 0 means that
nothing is seen. Renders that bring depth of an unknown scale have `depth_step` null. Training never reads depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from drwr_dist.data.png import png_fault
from drwr_dist.data.sample import ObjectSample

STEP_KEY = "depth_step"
_LEVELS = 65535
_ENDING = ".depth.png"
_ROOM = 0.02  # object units by which a seen surface may leave the unit cube: half a pixel and rounding
_IN_CUBE_SHARE = 0.99


def depth_step(distance: float) -> float:
    """Return the size of a level, in object units, for cameras at a distance from the unit cube's centre."""
    return (distance + 1.0) / _LEVELS


def to_levels(depths: NDArray[np.float32], step: float) -> NDArray[np.uint16]:
    """Round depths [...] in object units to levels; 0 stays 0."""
    return np.asarray(np.clip(np.rint(depths / step), 0, _LEVELS), dtype=np.uint16)


def depth_findings(members: Mapping[str, bytes], sample: ObjectSample) -> Iterator[str]:
    """Say what is wrong with the depth images of a sample, if it has any.

    Args:
        members: of the sample, as in the shard.
        sample: what was decoded from them; all views.
    """
    found = {name for name in members if name.endswith(_ENDING)}
    if not found:
        return
    views = {f"{view:02d}{_ENDING}": view for view in range(len(sample.masks))}
    for name in sorted(found ^ views.keys()):
        yield f"{name}: {'missing; other views have depth' if name in views else 'has no camera'}"
    step = sample.meta.get(STEP_KEY)
    if step is not None and not (isinstance(step, float) and step > 0):
        yield f"meta.json: {STEP_KEY} is {step!r}, neither a positive number nor null"
        step = None
    for name in sorted(found & views.keys()):
        view = views[name]
        if reason := png_fault(members[name], channels=1, bits=16):
            yield f"{name}: {reason}"
            continue
        levels = cv2.imdecode(np.frombuffer(members[name], np.uint8), cv2.IMREAD_UNCHANGED)
        if levels is None or levels.shape != sample.masks[view].shape:
            yield f"{name}: {'damaged: the PNG can not be decoded' if levels is None else 'not as large as the mask'}"
        elif step is not None and (reason := _misfit(levels * step, sample, view)):
            yield f"{name}: {reason}"


def _misfit(depth: NDArray[np.float64], sample: ObjectSample, view: int) -> str | None:
    """Say how depths [H, W] in object units contradict the mask or the camera of their view, or return None."""
    mask, matrix = sample.masks[view], sample.world_to_camera[view]
    if ((depth > 0) != (mask > 0)).any():
        return "depth and mask don't belong together: they differ in where something is seen"
    rows, columns = np.nonzero(mask == 255)
    if not len(rows):
        return None
    z = depth[rows, columns]
    xy = (np.stack([columns, rows], axis=1) + 0.5) / len(mask) - 0.5
    camera = np.concatenate([xy / sample.focal_length[view] * z[:, None], z[:, None]], axis=1)
    seen = (camera - matrix[:3, 3]) @ matrix[:3, :3]  # row vectors: Rᵀ (x - t)
    share = float((np.abs(seen) <= 0.5 + _ROOM).all(axis=1).mean())
    if share < _IN_CUBE_SHARE:
        return f"depth and camera don't belong together: only {share:.0%} of what is seen lies in the unit cube"
    return None
