"""The picture of a run: input image, prediction and ground truth side by side, as seen by the input camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from drwr_dist.camera import project, world_to_camera_from_angles
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.point_cloud import read_ply

GALLERY = "gallery.png"
TILE = 192  # pixels a side of each picture
TITLES = ("input", "prediction", "ground truth", "prediction, side", "ground truth, side")
LABEL = 18  # pixels of the line above each row
# A second look at the same points, from a fixed camera: front, left, above.
SIDE_VIEW = world_to_camera_from_angles(torch.tensor(np.deg2rad(40.0)), torch.tensor(np.deg2rad(25.0))).to(
    torch.float64
)


def draw_points(
    points: NDArray[np.floating], world_to_camera: torch.Tensor, size: int = TILE, radius: int = 1
) -> NDArray[np.uint8]:
    """Draw points [N, 3] (object frame) as shaded discs, near ones over far ones; return RGB [size, size, 3]."""
    cloud = torch.as_tensor(np.asarray(points), dtype=torch.float64)
    xy, depth = project(cloud[None], world_to_camera[None].to(torch.float64))
    pixels, distance = (xy[0] * size).numpy(), depth[0].numpy()
    image = np.full((size, size, 3), 255, dtype=np.uint8)
    near, far = distance.min(), distance.max()
    order = np.argsort(-distance, kind="stable")
    order = order[np.isfinite(pixels[order]).all(-1)]
    shade = ((distance[order] - near) / max(far - near, 1e-9))[:, None]
    colours = (np.array([28, 90, 160]) * (1 - shade) + np.array([190, 210, 230]) * shade).astype(np.uint8)
    reach = range(-radius, radius + 1)
    offsets = np.array([(dx, dy) for dx in reach for dy in reach if dx * dx + dy * dy <= radius * (radius + 0.5)])
    places = pixels[order, None].astype(np.int64) + offsets  # [N, D, 2]; of a repeated index, the last one counts
    inside = ((places >= 0) & (places < size)).all(-1)
    rows, columns = places[..., 1][inside], places[..., 0][inside]
    image[rows, columns] = np.broadcast_to(colours[:, None], (*places.shape[:2], 3))[inside]
    return image


def write_gallery(run: Path, predictions: Path, table: SampleTable, block: dict[str, Any], rows: int = 6) -> Path:
    """Draw objects of median error of every category into `<run>/gallery.png` and return its path.

    Args:
        run: the run's folder.
        predictions: folder that holds `<key>.00.ply`.
        table: the evaluated objects.
        block: their results (see `drwr_dist.evaluate.measure`).
        rows: how many objects at most.
    """
    keys = _typical(block["objects"], rows)
    pictures = [_tiles(key, predictions, table) for key in keys]
    titles = [title for title in TITLES if any(title in tiles for tiles in pictures)]
    sheet = Image.new("RGB", (TILE * len(titles), (TILE + LABEL) * len(keys) + LABEL), "white")
    pen = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        pen.text((column * TILE + 6, 3), title, fill="black")
    for row, key in enumerate(keys):
        top = LABEL + row * (TILE + LABEL)
        pen.text((6, top + 3), _label(key, block["objects"][key]), fill="black")
        for title, tile in pictures[row].items():
            sheet.paste(Image.fromarray(tile), (titles.index(title) * TILE, top + LABEL))
    path = run / GALLERY
    partial = path.with_name(f".{path.name}")
    sheet.save(partial, format="PNG")
    partial.replace(path)
    return path


def _label(key: str, row: dict[str, float]) -> str:
    return f"{key}   Chamfer x 100: {row['chamfer']:.2f}" if "chamfer" in row else key


def _typical(objects: dict[str, dict[str, float]], rows: int) -> list[str]:
    """Choose about equally many keys per category, those nearest to the category's median error."""
    categories = sorted({key.split("/")[0] for key in objects})
    each = max(1, rows // len(categories))
    chosen = []
    for name in categories:
        keys = [key for key in objects if key.split("/")[0] == name]
        errors = {key: objects[key].get("chamfer", 0.0) for key in keys}
        median = float(np.median(list(errors.values())))
        chosen += sorted(keys, key=lambda key: abs(errors[key] - median))[:each]
    return chosen[:rows]


def _tiles(key: str, predictions: Path, table: SampleTable) -> dict[str, NDArray[np.uint8]]:
    """Return an object's pictures by their titles; what isn't known has none."""
    sample = table.read(table.keys.index(key), with_points=True)
    image = Image.fromarray(composite(sample.images[0], sample.masks[0], 1.0)).resize((TILE, TILE))
    camera = torch.from_numpy(sample.world_to_camera[0])
    tiles = {"input": np.asarray(image)}
    for name, cloud in (("prediction", read_ply(predictions / f"{key}.00.ply")), ("ground truth", sample.points)):
        if cloud is not None:
            tiles |= {name: draw_points(cloud, camera), f"{name}, side": draw_points(cloud, SIDE_VIEW)}
    return tiles
