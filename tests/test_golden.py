"""Parity with the numbers of the released TensorFlow code, array by array (tests/golden/README.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drwr_dist.camera import (
    project,
    world_to_camera_from_extrinsic,
    world_to_camera_from_position,
    world_to_camera_from_quaternion,
)
from drwr_dist.losses import drwr_loss, sampling
from drwr_dist.losses.repulsion import repulsion
from drwr_dist.metrics import chamfer_distance
from drwr_dist.silhouette import binarize, smooth_silhouette

pytestmark = pytest.mark.golden

EXACT = 1e-9  # float64, from stored quaternions
FROM_POSITION = 1e-5  # float64, but the stored quaternions had been rounded to float32
SINGLE = 2e-4  # float32

TERMS = {"total": "total", "unary": "unary", "repulsion": "potential"}
CASES = [
    *((64, kind, grid) for kind in ("ell", "noise") for grid in (32, 64, 128)),
    (500, "ell", 64),
    (500, "noise", 128),
    (2000, "ell", 32),
]


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as archive:
        return dict(archive)


def tensor(array: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.asarray(array)).to(dtype)


def silhouettes(golden: dict[str, np.ndarray], kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return masks and smooth silhouettes [V, 128, 128], through float32 as the reference had them."""
    masks = torch.from_numpy(golden[f"{kind}_masks_255"]).float() / 255
    if kind == "noise":
        smooth = torch.from_numpy(golden["noise_smooth_256"]).float() / 256
    else:
        smooth = torch.from_numpy(golden["ell_smooth"])
    return masks.to(dtype), smooth.to(dtype)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, EXACT), (torch.float32, 1e-6)])
@pytest.mark.parametrize("prefix", ["", "rect_"])
def test_silhouette(prefix: str, dtype: torch.dtype, limit: float, compare: Any) -> None:
    golden = load("silhouette")
    alpha = torch.from_numpy(golden[prefix + "alpha"])
    name = f"silhouette, {dtype}"
    compare(name, smooth_silhouette(alpha.to(dtype) / 255), golden[prefix + "sdf"], limit)
    stored = smooth_silhouette(binarize(alpha).to(dtype) / 255)
    compare(name, stored, golden[prefix + "sdf_of_binarized"], limit)


def test_binarize(compare: Any) -> None:
    golden = load("silhouette")
    compare("binary silhouette", binarize(torch.from_numpy(golden["alpha"])), golden["mask_binarized"], 0.0)
    compare("binary silhouette", binarize(golden["alpha"]), golden["mask_binarized"], 0.0)


@pytest.mark.parametrize(
    ("path", "prefix", "limit"),
    [
        ("quaternion", "quat_", EXACT),
        ("position", "quat_", FROM_POSITION),
        ("extrinsic", "mat_", EXACT),
        ("extrinsic off centre", "matoff_", EXACT),
        ("quaternion, float32", "quat_", SINGLE),
    ],
)
def test_camera(path: str, prefix: str, limit: float, compare: Any) -> None:
    golden = load("camera")
    dtype = torch.float32 if "float32" in path else torch.float64
    world_to_camera = {
        "quaternion": lambda: world_to_camera_from_quaternion(tensor(golden["quaternion"], dtype)),
        "quaternion, float32": lambda: world_to_camera_from_quaternion(tensor(golden["quaternion"], dtype)),
        "position": lambda: world_to_camera_from_position(tensor(golden["cam_pos"])),
        "extrinsic": lambda: world_to_camera_from_extrinsic(tensor(golden["extrinsic"])),
        "extrinsic off centre": lambda: world_to_camera_from_extrinsic(tensor(golden["extrinsic_offcentre"])),
    }[path]()
    points = tensor(golden["points"], dtype).expand(len(world_to_camera), -1, -1)
    xy, depth = project(points, world_to_camera)
    released = torch.stack((xy[..., 0] - 0.5, 0.5 - xy[..., 1]), dim=-1)
    compare(f"camera {path}: xy", released, golden[prefix + "xy"], limit)
    compare(
        f"camera {path}: xyz2", torch.cat((depth[..., None] - 2, released.flip(-1)), -1), golden[prefix + "xyz2"], limit
    )
    for grid in (32, 64, 128):
        coordinates = sampling.released_coordinates(xy, grid)
        compare(f"camera {path}: coord", coordinates, golden[f"{prefix}coord{grid}"], limit)


def test_position_is_the_quaternion_path(compare: Any) -> None:
    golden = load("camera")
    for positions, quaternions in (("cam_pos", "quaternion_f64"), ("pole_cam_pos", "pole_quaternion_f64")):
        expected = world_to_camera_from_quaternion(tensor(golden[quaternions]))
        compare(
            "position against quaternion", world_to_camera_from_position(tensor(golden[positions])), expected, EXACT
        )


def test_the_two_released_paths_differ_by_half_a_turn() -> None:
    """For one Blender camera, mat(x, y, z) = quat(-x, y, -z): importers must know which path their data took."""
    golden = load("camera")
    quaternion = world_to_camera_from_quaternion(tensor(golden["quaternion_f64"]))
    matrix = world_to_camera_from_extrinsic(tensor(golden["extrinsic"]))
    at_two = (tensor(golden["cam_pos"]).norm(dim=-1) - 2).abs() < 1e-6
    turned = quaternion[:, :3, :3] * torch.tensor([-1.0, 1.0, -1.0])
    assert at_two.any()
    torch.testing.assert_close(matrix[at_two, :3, :3], turned[at_two], atol=1e-6, rtol=0)


@pytest.mark.parametrize("method", ["plain", "fourier"])
@pytest.mark.parametrize(
    ("path", "dtype", "limit"),
    [
        ("float64", torch.float64, EXACT),
        ("float64, cam_pos", torch.float64, FROM_POSITION),
        ("float32", torch.float32, SINGLE),
    ],
)
@pytest.mark.parametrize(("n", "kind", "grid"), CASES)
def test_loss(
    n: int, kind: str, grid: int, path: str, dtype: torch.dtype, limit: float, method: str, compare: Any
) -> None:
    if method == "plain" and n == 2000:
        pytest.skip("64 MB a view and more; the fourier form is compared with it elsewhere")
    golden = load(f"loss_n{n}")
    if "cam_pos" in path:
        world_to_camera = world_to_camera_from_position(tensor(golden["cam_pos"], dtype))
    else:
        world_to_camera = world_to_camera_from_quaternion(tensor(golden["quaternion"], dtype))
    points = tensor(golden[f"{kind}_points"], dtype).requires_grad_()
    masks, smooth = silhouettes(golden, kind, dtype)
    views = (world_to_camera[None], masks[None], smooth[None])
    loss = drwr_loss(points, *views, grid=grid, semantics="released", method=method)
    for ours, theirs in TERMS.items():
        value = getattr(loss, ours)
        (gradient,) = torch.autograd.grad(value, points, retain_graph=True)
        name = f"{path}, {method}: {ours}"
        compare(name, value, golden[f"{kind}_v{grid}_{theirs}"], limit)
        compare(f"{name} by points", gradient, golden[f"{kind}_v{grid}_d{theirs}_dpoints"], limit)


@pytest.mark.parametrize("kind", ["ell", "noise"])
@pytest.mark.parametrize("grid", [32, 64, 128])
def test_intermediates(kind: str, grid: int, compare: Any) -> None:
    golden = {k.removeprefix(f"{kind}_v{grid}_"): v for k, v in load("loss_n64").items()}
    masks, smooth = silhouettes(golden, kind, torch.float64)
    cameras = world_to_camera_from_quaternion(tensor(golden["quaternion"]))
    xy, _ = project(tensor(golden[f"{kind}_points"]).expand(len(cameras), -1, -1), cameras)
    coordinates = sampling.released_coordinates(xy, grid).requires_grad_()
    compare("coordinates", coordinates, golden["coord"], EXACT)

    rings = sampling.released_samples(sampling.released_image(masks, grid), coordinates, 5)
    samples = sampling.released_samples(sampling.released_image(smooth, grid), coordinates, 1)[..., 0]
    weights, ring_mean = rings[..., 0], rings.mean(-1)
    compare("ring", rings, golden["ring"], EXACT)
    compare("ring mean", ring_mean, golden["ring_mean"], EXACT)
    compare("weight", weights, golden["weight"], EXACT)
    compare("smooth silhouette at points", samples, golden["sdf_at_points"], EXACT)

    n = coordinates.shape[1]
    bias = 3.5 + ring_mean
    pairs = repulsion(coordinates, weights, bias, 5.0 * grid / 32, grid - 1, "fourier") / n**2
    (by_bias,) = torch.autograd.grad(pairs.sum(), bias, retain_graph=True)
    compare("potential per point", n * by_bias, golden["weight"] * golden["potential_per_point"], EXACT)

    terms = {"unary": (1 - samples).abs().mean(), "potential": pairs.mean()}
    terms["total"] = terms["unary"] + 3 * terms["potential"]
    for term, value in terms.items():
        (gradient,) = torch.autograd.grad(value, coordinates, retain_graph=True)
        compare(f"{term} by coordinates", gradient, golden[f"d{term}_dcoord"], EXACT)


def test_chamfer(compare: Any) -> None:
    golden = load("chamfer")
    predicted, target = tensor(golden["pred"]), tensor(golden["gt"])
    both = [[torch.stack(chamfer_distance(p, t)) for p in views] for views, t in zip(predicted, target, strict=True)]
    distances = torch.stack([torch.stack(views) for views in both])  # [models, views, 2]
    compare("chamfer, predicted to target", distances[..., 0], golden["pred_to_gt_mean"], EXACT)
    compare("chamfer, target to predicted", distances[..., 1], golden["gt_to_pred_mean"], EXACT)
    best = distances.sum(-1).min(-1).values
    compare("chamfer, minimum over views", best, golden["per_model_min_over_views"], EXACT)
