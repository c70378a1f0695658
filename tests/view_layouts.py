"""Writes what the sources of ready-made views read, from our own renderer: known meshes, known cameras."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
import trimesh
from PIL import Image
from rich.console import Console

from drwr_dist.data.index import DatasetIndex, load_index, read_sample
from drwr_dist.data.sample import ObjectSample, composite, decode_sample, split_members
from drwr_dist.data.verify import grown
from drwr_dist.shards import ImportOptions, import_dataset, main
from drwr_dist.sources.crc32c import masked_crc32c
from drwr_dist.sources.geometry import Mesh, normalise, sample_surface
from drwr_dist.sources.rendering import RenderSettings, render

SIDE = 64


def lopsided(seed: int = 0) -> Mesh:
    """A mesh that no symmetry maps to itself: a box, a leg and a knob, in the unit cube."""
    random = np.random.default_rng(seed)
    size = random.uniform(0.3, 1.0, 3)
    parts = [trimesh.creation.box(size), trimesh.creation.box(0.3 * size), trimesh.creation.icosphere(2, 0.15)]
    parts[1].apply_translation(0.6 * size)
    parts[2].apply_translation((-0.5 * size[0], 0.55 * size[1], 0.1))
    joined = trimesh.util.concatenate(parts)
    return normalise(Mesh(np.asarray(joined.vertices), np.asarray(joined.faces)))[0]


def blender_camera(position: np.ndarray) -> np.ndarray:
    """The extrinsic [4, 4] of a Blender camera at a position that looks at the origin, +Z up (OpenCV axes)."""
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    matrix = np.eye(4)
    matrix[:3, :3] = [right, np.cross(forward, right), forward]
    matrix[:3, 3] = -matrix[:3, :3] @ position
    return matrix


TO_BLENDER = np.array([[1.0, 0, 0], [0, 0, -1.0], [0, 1.0, 0]])  # object (x, y, z) is Blender (x, -z, y)


@dataclass
class Rendered:
    """One model as the released renders have it."""

    mesh: Mesh
    positions: np.ndarray  # [V, 3] Blender
    extrinsics: np.ndarray  # [V, 4, 4]
    images: np.ndarray  # [V, H, H, 3]
    masks: np.ndarray  # [V, H, H]
    points: np.ndarray  # [M, 3] object frame


def render_blender(seed: int, views: int = 5) -> Rendered:
    """Render a mesh from known Blender camera positions, written down here independently of drwr_dist.camera."""
    random = np.random.default_rng(seed)
    mesh = lopsided(seed)
    azimuth, elevation = random.uniform(0, 2 * np.pi, views), np.deg2rad(random.uniform(-20, 40, views))
    direction = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    positions = 2 * np.stack(direction, axis=1)
    extrinsics = np.stack([blender_camera(position) for position in positions])
    object_to_camera = extrinsics.copy()
    object_to_camera[:, :3, :3] = extrinsics[:, :3, :3] @ TO_BLENDER
    images, masks, _ = render(mesh, object_to_camera, RenderSettings(image_size=SIDE, views=views))
    return Rendered(mesh, positions, extrinsics, images, masks, sample_surface(mesh, 3000, random))


def write_dpc(root: Path, models: Mapping[str, Rendered]) -> None:
    """Write `<synset>/<model>` as the DPC download has it."""
    for key, model in models.items():
        synset, name = key.split("/")
        folder = root / "render" / synset / name
        folder.mkdir(parents=True)
        for view in range(len(model.images)):
            rgba = np.concatenate([model.images[view], model.masks[view][..., None]], axis=-1)
            Image.fromarray(rgba).save(folder / f"render_{view}.png")
            Image.fromarray(np.zeros((SIDE, SIDE), np.uint16)).save(folder / f"depth_{view}.png")
            camera = {"pos": model.positions[view][None], "extrinsic": model.extrinsics[view]}
            scipy.io.savemat(folder / f"camera_{view}.mat", camera)
        (root / "gt" / "downsampled" / synset).mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(root / "gt" / "downsampled" / synset / f"{name}.mat", {"points": model.points})


# --- TFRecords: an encoder of our own, byte by byte -----------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features: Mapping[str, object]) -> bytes:
    """Serialise a tf.train.Example of strings, float arrays and integer lists."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, str):
            feature = field(1, field(1, value.encode()))
        elif isinstance(value, np.ndarray):
            feature = field(2, field(1, value.astype("<f4").tobytes()))
        else:
            feature = field(3, field(1, b"".join(varint(int(item)) for item in value)))  # type: ignore[attr-defined]
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def framed(record: bytes) -> bytes:
    length = len(record).to_bytes(8, "little")
    return b"".join(
        [length, masked_crc32c(length).to_bytes(4, "little"), record, masked_crc32c(record).to_bytes(4, "little")]
    )


def features_of(name: str, model: Rendered, /, **changes: object) -> dict[str, object]:
    """The features that the released generator writes: RGB on white, masks in 0 … 1."""
    found: dict[str, object] = {
        "image": composite(model.images, model.masks, 1.0) / 255.0,
        "mask": model.masks[..., None] / 255.0,
        "name": name,
        "extrinsic": model.extrinsics,
        "cam_pos": model.positions,
        "depth": np.zeros((len(model.masks), SIDE, SIDE, 1)),
        **changes,
    }
    return {key: value for key, value in found.items() if value is not None}


def write_records(path: Path, records: Sequence[bytes], compressed: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(framed(record) for record in records)
    path.write_bytes(gzip.compress(data, mtime=0) if compressed else data)


# --- importing and checking -----------------------------------------------------------------------------------


def run_import(source: str, folder: Path, output: Path, **options: object) -> DatasetIndex:
    settings = {"image_size": SIDE, "workers": 1, **options}
    chosen = ImportOptions(source=source, input=str(folder), output=str(output), **settings)  # type: ignore[arg-type]
    return import_dataset(chosen, Console(quiet=True))


def run_command(source: str, folder: Path, output: Path, *more: str) -> None:
    """`shards import` as it is typed, in this process: a second one would only load the packages again."""
    arguments = [f"source={source}", f"input={folder}", f"output={output}", "workers=1", *more]
    assert main(["import", *arguments]) == 0


def read_all(root: Path) -> dict[str, tuple[str, ObjectSample]]:
    index = load_index(root)
    found = {}
    for split in ("train", "val", "test"):
        for number, position, key in index.select(split):
            members = split_members(read_sample(index, number, position), key=key)
            found[key] = split, decode_sample(members, key=key, shard="s", with_points=True)
    return found


def share_on_masks(points: np.ndarray, sample: ObjectSample, margin: float = 1.0) -> float:
    """The share of points [N, 3] that project within a margin of pixels of the mask, over all views."""
    inside = []
    for matrix, focal, mask in zip(sample.world_to_camera, sample.focal_length, sample.masks, strict=True):
        camera = points @ matrix[:3, :3].T + matrix[:3, 3]
        pixel = np.floor((focal * camera[:, :2] / camera[:, 2:] + 0.5) * len(mask)).astype(int)
        framed_points = ((pixel >= 0) & (pixel < len(mask))).all(axis=1)
        column, row = np.clip(pixel, 0, len(mask) - 1).T
        inside.append(framed_points & grown(mask, margin)[row, column])
    return float(np.mean(inside))


def to_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
