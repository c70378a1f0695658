from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import trimesh
from shapes import box, mesh_of

from drwr_dist.camera import project
from drwr_dist.data.faults import camera_fault
from drwr_dist.data.verify import grown
from drwr_dist.sources import rendering
from drwr_dist.sources.geometry import Mesh, normalise, sample_surface
from drwr_dist.sources.rendering import RenderSettings, look_at_origin, random_cameras, render

SETTINGS = RenderSettings(image_size=64, views=3)


def camera(azimuth: float = 0.0, elevation: float = 0.0) -> np.ndarray:
    return look_at_origin(np.deg2rad([azimuth]), np.deg2rad([elevation]), 2.0)


def view(mesh: Mesh, azimuth: float = 0.0, elevation: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    images, masks, _ = render(mesh, camera(azimuth, elevation), SETTINGS)
    return images[0], masks[0]


def rows_and_columns(mask: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(mask > 127)
    return rows.mean(), columns.mean()


class TestCameras:
    def test_they_are_rigid_at_their_distance_and_look_at_the_origin(self):
        cameras = random_cameras(RenderSettings(views=50, distance=1.7), np.random.default_rng(0))
        assert camera_fault(cameras, np.ones(50)) is None
        assert np.allclose(cameras[:, :3, 3], (0, 0, 1.7))
        heights = -np.einsum("vji,vj->vi", cameras[:, :3, :3], cameras[:, :3, 3])[:, 1] / 1.7
        degrees = np.rad2deg(np.arcsin(heights))
        assert degrees.min() >= -20 and degrees.max() <= 40

    @pytest.mark.parametrize(
        ("azimuth", "elevation", "position"),
        [(0, 0, (2, 0, 0)), (90, 0, (0, 0, 2)), (0, 30, (2 * np.cos(np.pi / 6), 1, 0))],
    )
    def test_where_they_stand(self, azimuth: float, elevation: float, position: tuple[float, ...]):
        matrix = camera(azimuth, elevation)[0]
        assert np.allclose(matrix @ [*position, 1], [0, 0, 0, 1])

    def test_up_is_up_in_the_image(self):
        import torch

        xy, _ = project(torch.tensor([[[0.0, 0.3, 0.0]]], dtype=torch.float64), torch.from_numpy(camera(20, 10)))
        assert xy[0, 0, 1] < 0.5 and abs(xy[0, 0, 0] - 0.5) < 1e-9


class TestSilhouettes:
    def test_a_ball_is_the_exact_disc(self):
        ball = mesh_of(trimesh.creation.icosphere(subdivisions=5, radius=0.4))
        _, mask = view(ball, 33, 12)
        side = SETTINGS.image_size
        area = np.pi * (1.875 * 0.4 / np.sqrt(4 - 0.16)) ** 2
        assert mask.sum() / 255 / side**2 == pytest.approx(area, rel=0.003)
        assert np.allclose(rows_and_columns(mask), (side - 1) / 2, atol=0.05)
        assert len(np.unique(mask)) > 5  # antialiased

    def test_up_down_left_right(self):
        side = SETTINGS.image_size
        above = view(box(0.1, 0.1, 0.1, at=(0, 0.3, 0)))[1]
        assert rows_and_columns(above)[0] < side / 2
        # Seen from the front (+X), the object's right side (+Z) is at the left of the picture.
        right = view(box(0.1, 0.1, 0.1, at=(0, 0, 0.3)))[1]
        assert rows_and_columns(right)[1] < side / 2
        near = view(box(0.1, 0.2, 0.2, at=(0.4, 0, 0)))[1]
        far = view(box(0.1, 0.2, 0.2, at=(-0.4, 0, 0)))[1]
        assert near.sum() > far.sum()

    @pytest.mark.parametrize("seed", range(5))
    def test_surface_points_project_onto_the_mask(self, seed: int):
        """Three independent pieces agree: rays, the samples, and the package's projection."""
        import torch

        random = np.random.default_rng(seed)
        parts = [trimesh.creation.torus(0.5, 0.05), trimesh.creation.box((0.4, 1.0, 0.02))]
        parts[1].apply_translation(random.uniform(-0.4, 0.4, 3))
        mesh = normalise(mesh_of(trimesh.util.concatenate(parts)))[0]
        cameras = random_cameras(SETTINGS, random)
        masks = render(mesh, cameras, SETTINGS).masks
        points = np.repeat(sample_surface(mesh, 2000, random)[None], len(cameras), axis=0)
        xy, _ = project(torch.from_numpy(points), torch.from_numpy(cameras))
        pixel = (xy.numpy() * SETTINGS.image_size).astype(int)
        inside = [grown(mask)[y, x] for mask, (x, y) in zip(masks, np.moveaxis(pixel, 2, 1), strict=True)]
        assert np.mean(inside) > 0.999

    def test_every_object_of_the_unit_diagonal_is_in_the_frame(self):
        for size in [(1, 0.01, 0.01), (0.01, 1, 0.01), (1, 1, 1), (0.01, 0.01, 1)]:
            cameras = random_cameras(SETTINGS, np.random.default_rng(1))
            masks = render(normalise(box(*size))[0], cameras, SETTINGS).masks
            edge = np.concatenate([masks[:, 0], masks[:, -1], masks[:, :, 0], masks[:, :, -1]], axis=1)
            assert not edge.any() and (masks.max(axis=(1, 2)) > 0).all()


def test_rays_outside_of_the_window_hit_nothing(monkeypatch: pytest.MonkeyPatch):
    """Only the part of the frame that can see the mesh is traced; tracing all of it gives the same picture."""
    shapes = [box(0.3, 0.1, 0.2), box(0.1, 0.1, 0.1, at=(0.2, 0.9, 0)), box(1, 1, 1, at=(0, 0, 1.2)), box(0.2, 9, 0.2)]
    cameras = random_cameras(SETTINGS, np.random.default_rng(3))
    windowed = [render(shape, cameras, SETTINGS)[:2] for shape in shapes]
    whole = slice(0, SETTINGS.image_size)
    monkeypatch.setattr(rendering, "_window", lambda *_: (whole, whole))
    for shape, (images, masks) in zip(shapes, windowed, strict=True):
        all_images, all_masks, _ = render(shape, cameras, SETTINGS)
        assert np.array_equal(masks, all_masks)
        assert np.abs(images.astype(int) - all_images).max() <= 1


class TestShading:
    def test_colour_is_zero_outside_and_lit_inside(self):
        image, mask = view(box(0.4, 0.4, 0.4), 30, 20)
        assert (image[mask == 0] == 0).all()
        assert (image[mask == 255] > 20).all()
        assert (image[..., 0] == image[..., 1]).all()

    def test_faces_that_point_elsewhere_look_different(self):
        import torch

        image, _ = view(box(0.4, 0.4, 0.4), 40, 30)
        centres = torch.tensor([[[0.2, 0, 0], [0, 0.2, 0], [0, 0, 0.2]]], dtype=torch.float64)
        xy, _ = project(centres, torch.from_numpy(camera(40, 30)))
        levels = sorted(int(image[int(y * 64), int(x * 64), 0]) for x, y in xy[0].tolist())
        assert levels[1] - levels[0] > 8 and levels[2] - levels[1] > 8, levels

    def test_both_sides_of_a_sheet_are_lit_alike(self):
        sheet = np.array([[0, -0.3, -0.3], [0, 0.3, -0.3], [0, 0.3, 0.3], [0, -0.3, 0.3]])
        faces = np.array([[0, 1, 2], [0, 2, 3]])
        one, _ = view(Mesh(sheet, faces), 25)
        other, _ = view(Mesh(sheet, faces[:, ::-1]), 25)
        assert np.array_equal(one, other)

    def test_material_colours(self):
        mesh = box(0.4, 0.4, 0.4)
        image, mask = view(Mesh(mesh.vertices, mesh.faces, np.tile(np.uint8([200, 50, 0]), (12, 1))), 30)
        middle = image[mask == 255].astype(int)
        assert (middle[:, 2] == 0).all() and (middle[:, 0] > 2 * middle[:, 1]).all()

    def test_degenerate_faces_do_no_harm(self):
        mesh = box(0.4, 0.4, 0.4)
        faces = np.vstack([mesh.faces, [[0, 0, 1], [2, 2, 2]]])
        assert np.array_equal(view(Mesh(mesh.vertices, faces), 30)[0], view(mesh, 30)[0])


def spokes() -> Mesh:
    """Wires of a fifth to half of a pixel, hanging together or not, in front of nothing and of a ball."""
    random = np.random.default_rng(0)
    parts = [trimesh.creation.icosphere(3, 0.12)]
    for radius in (0.001, 0.0015, 0.002, 0.003):
        for _ in range(3):
            wire = trimesh.creation.cylinder(radius, 0.9, sections=6)
            wire.apply_transform(trimesh.transformations.random_rotation_matrix(random.random(3)))
            wire.apply_translation(random.uniform(-0.2, 0.2, 3))
            parts.append(wire)
    return normalise(mesh_of(trimesh.util.concatenate(parts)))[0]


class TestAdaptive:
    """All rays of a pixel only where something changes, against all rays everywhere."""

    FULL = dataclasses.replace(SETTINGS, adaptive=False)

    @pytest.mark.parametrize("supersample", [2, 3, 4])
    @pytest.mark.parametrize("shape", ["spokes", "ball", "box"])
    def test_it_shows_the_same(self, shape: str, supersample: int):
        mesh = {
            "spokes": spokes,
            "ball": lambda: mesh_of(trimesh.creation.icosphere(4, 0.45)),
            "box": lambda: box(0.5, 0.3, 0.4),
        }[shape]()
        cameras = random_cameras(SETTINGS, np.random.default_rng(5))
        images, masks, _ = render(mesh, cameras, dataclasses.replace(SETTINGS, supersample=supersample))
        all_images, all_masks, _ = render(mesh, cameras, dataclasses.replace(self.FULL, supersample=supersample))
        touched = all_masks > 0
        assert (masks != all_masks)[touched].mean() <= {2: 0.04, 3: 0.01, 4: 0.003}[supersample]
        difference = np.abs(images.astype(int) - all_images)[touched]
        assert shape == "spokes" or (difference.mean() < 0.5 and np.percentile(difference, 99) <= 8)

    def test_it_traces_fewer_rays(self, monkeypatch: pytest.MonkeyPatch):
        traced: list[int] = []
        shooter = rendering._shooter

        def counting(*arguments, **options):
            shoot = shooter(*arguments, **options)
            return lambda matrix, rays: (traced.append(len(rays)), shoot(matrix, rays))[1]

        monkeypatch.setattr(rendering, "_shooter", counting)
        counts = []
        for settings in (SETTINGS, self.FULL):
            traced.clear()
            render(box(0.5, 0.3, 0.4), camera(30, 20), settings)
            counts.append(sum(traced))
        assert 2 * counts[0] < counts[1]


class TestDepth:
    SETTINGS = dataclasses.replace(SETTINGS, depth=True)

    @pytest.mark.parametrize("adaptive", [True, False])
    def test_of_a_wall(self, adaptive: bool):
        """Depth is along the camera's axis, not along the ray: a wall that faces the camera has one depth."""
        settings = dataclasses.replace(self.SETTINGS, adaptive=adaptive)
        _, masks, depths = render(box(0.2, 0.7, 0.7), camera(0), settings)
        assert depths is not None and np.array_equal(depths > 0, masks > 0)
        assert np.allclose(depths[masks == 255], 2 - 0.1, atol=1e-5)

    def test_surface_points_have_their_depth(self):
        mesh = mesh_of(trimesh.creation.icosphere(5, 0.4))
        matrix = camera(50, 20)
        depths = render(mesh, matrix, self.SETTINGS).depths
        assert depths is not None
        side = SETTINGS.image_size
        rows, columns = np.nonzero(depths[0] > 0)
        ray = np.stack([(columns + 0.5) / side - 0.5, (rows + 0.5) / side - 0.5, np.full(len(rows), 1.875)], axis=1)
        seen = ray / 1.875 * depths[0, rows, columns, None]
        distance = np.linalg.norm(seen - matrix[0, :3, 3], axis=1)
        assert np.mean(np.abs(distance - 0.4) < 0.01) > 0.9

    def test_none_unless_asked(self):
        assert render(box(0.5, 0.3, 0.4), camera(), SETTINGS).depths is None


def test_the_same_bytes_every_time():
    mesh = normalise(mesh_of(trimesh.creation.torus(0.5, 0.2)))[0]
    cameras = random_cameras(SETTINGS, np.random.default_rng(0))
    first, second = render(mesh, cameras, SETTINGS)[:2], render(mesh, cameras, SETTINGS)[:2]
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
