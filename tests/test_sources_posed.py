from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from posed_scenes import STRAIGHT, Scene, change, in_unit_cube, scene, split_alpha, to_source, write_transforms
from view_layouts import contents, read_all, run_command, run_import, share_on_masks

from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources.rendering import GREY


@pytest.fixture(scope="module")
def mug(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scene]:
    """One object; never write to it."""
    found = scene(0)
    root = tmp_path_factory.mktemp("posed")
    write_transforms(root / "mug/a", found)
    return root, found


@pytest.fixture
def own(mug: tuple[Path, Scene], tmp_path: Path) -> Path:
    """A copy of its folder to write to; the input is its grandparent."""
    shutil.copytree(mug[0], tmp_path / "in")
    return tmp_path / "in/mug/a"


class TestImport:
    def test_surface_points_project_onto_the_masks(self, tmp_path: Path):
        """Several objects, bent lenses, off-centre cameras with roll: the mesh's own points fall onto the new masks."""
        scenes = {"mug/a": scene(0), "mug/b": scene(1, lens=STRAIGHT), "shoe/c": scene(2)}
        for key, found in scenes.items():
            write_transforms(tmp_path / "in" / key, found)
        run_command("posed", tmp_path / "in", tmp_path / "out", "image_size=96")
        assert verify_dataset(str(tmp_path / "out")) == []
        found_samples = read_all(tmp_path / "out")
        assert sorted(found_samples) == sorted(scenes)
        for key, (_, sample) in found_samples.items():
            source = scenes[key]
            points = in_unit_cube(source.points, sample.meta)
            assert share_on_masks(points, sample) >= 0.999
            assert share_on_masks(points * (-1, 1, -1), sample) < 0.95
            self.check_frame(points, sample, source)

    @staticmethod
    def check_frame(points: np.ndarray, sample, source: Scene) -> None:
        # The box of the hull holds the object, is centred on it and not much larger.
        low, high = points.min(axis=0), points.max(axis=0)
        assert 0.88 < np.linalg.norm(high - low) <= 1.01
        assert np.abs(low + high).max() / 2 < 0.04
        # The object fills the frame as in training: a sphere of diameter 1 always has the same size.
        distance = np.linalg.norm(sample.world_to_camera[:, :3, 3], axis=1)
        radius = sample.focal_length * 0.5 / np.sqrt(distance**2 - 0.25)
        assert np.allclose(radius, 1.875 * 0.5 / np.sqrt(3.75))
        # Every camera looks at the centre, +Y up, from where the photograph was taken.
        assert np.allclose(sample.world_to_camera[:, :2, 3], 0, atol=1e-9)
        assert np.allclose(sample.world_to_camera[:, 0, 1], 0, atol=1e-9)
        assert (sample.world_to_camera[:, 1, 1] < 0).all()
        places = -np.einsum("vji,vj->vi", sample.world_to_camera[:, :3, :3], sample.world_to_camera[:, :3, 3])
        taken = -np.einsum("vji,vj->vi", source.cameras[:, :3, :3], source.cameras[:, :3, 3])
        assert np.allclose(to_source(places, sample.meta), taken, atol=1e-6)

    def test_colours_are_not_mixed_with_the_background(self, mug: tuple[Path, Scene], tmp_path: Path):
        run_import("posed", mug[0], tmp_path / "out")
        _, sample = read_all(tmp_path / "out")["mug/a"]
        assert np.abs(sample.images[sample.masks > 20].astype(int) - GREY).max() <= 8  # the photographs' red stays out
        assert (sample.images[sample.masks == 0] == 0).all()
        assert ((sample.masks > 0) & (sample.masks < 255)).any()
        assert sample.meta["source_images"][0] == "./images/0000"

    def test_bytes_do_not_depend_on_the_number_of_workers(self, own: Path, tmp_path: Path):
        own.rename(own.parent / "z")
        for workers in (1, 2):
            run_import("posed", own.parent, tmp_path / str(workers), workers=workers, name="same", views=5)
        assert contents(tmp_path / "1") == contents(tmp_path / "2")

    def test_up(self, mug: tuple[Path, Scene], tmp_path: Path):
        run_import("posed", mug[0], tmp_path / "out", up="-x")
        _, sample = read_all(tmp_path / "out")["mug/a"]
        assert np.allclose(np.array(sample.meta["similarity"]["rotation"]) @ [-1, 0, 0], [0, 1, 0])
        assert share_on_masks(in_unit_cube(mug[1].points, sample.meta), sample) >= 0.999

    def test_one_object_or_objects_without_category(self, own: Path, tmp_path: Path):
        run_import("posed", own, tmp_path / "one")
        run_import("posed", own.parent, tmp_path / "many")
        assert list(read_all(tmp_path / "one")) == list(read_all(tmp_path / "many")) == ["object/a"]

    def test_numbers_of_views(self, own: Path, tmp_path: Path):
        assert run_import("posed", own, tmp_path / "all").views == 8
        assert run_import("posed", own, tmp_path / "some", views=5).views == 5
        with pytest.raises(DataError, match="8 views, 9 asked for"):
            run_import("posed", own, tmp_path / "more", views=9)


def misspelt(content: dict) -> None:
    content["frames"][1]["transfom_matrix"] = content["frames"][1].pop("transform_matrix")


class TestIntrinsics:
    def share(self, own: Path, tmp_path: Path, found: Scene) -> float:
        run_import("posed", own, tmp_path / "out", overwrite=True)
        _, sample = read_all(tmp_path / "out")["object/a"]
        return share_on_masks(in_unit_cube(found.points, sample.meta), sample)

    def test_only_a_field_of_view(self, tmp_path: Path):
        found = scene(3, lens=STRAIGHT)
        folder = write_transforms(tmp_path / "a", found)
        angle = 2 * np.arctan(0.5 * STRAIGHT.width / STRAIGHT.fx)
        keep = {"camera_angle_x": float(angle)}
        change(folder, lambda c: [c.pop(key) for key in list(c) if key != "frames"] and c.update(keep))
        assert self.share(folder, tmp_path, found) >= 0.999
        _, right = read_all(tmp_path / "out")["object/a"]
        change(folder, lambda c: c.update(camera_angle_x=0.6 * angle))  # the test would notice
        self.share(folder, tmp_path, found)
        _, wrong = read_all(tmp_path / "out")["object/a"]
        assert wrong.meta["similarity"]["scale"] > 1.2 * right.meta["similarity"]["scale"]

    def test_frames_may_have_their_own(self, own: Path, mug: tuple[Path, Scene], tmp_path: Path):
        def move(content: dict) -> None:
            for frame in content["frames"]:
                frame.update({name: content[name] for name in ("fl_x", "fl_y", "cx", "cy", "k1", "k2", "p1", "p2")})
            content.update(fl_x=1.0, cx=0.0, k1=9.0)

        change(own, move)
        assert self.share(own, tmp_path, mug[1]) >= 0.999

    def test_images_of_another_size(self, own: Path, mug: tuple[Path, Scene], tmp_path: Path):
        for path in (own / "images").iterdir():
            image = Image.open(path)
            image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST).save(path)
        assert self.share(own, tmp_path, mug[1]) >= 0.999
        Image.new("RGBA", (150, 200)).save(own / "images/0000.png")
        image = np.zeros((200, 150, 4), np.uint8)
        image[50:90, 50:90] = 255
        Image.fromarray(image).save(own / "images/0000.png")
        with pytest.raises(DataError, match="150 × 200 pixels, its camera 200 × 150: cropped or turned"):
            run_import("posed", own, tmp_path / "bad")

    @pytest.mark.parametrize(
        ("edit", "reason"),
        [
            (lambda c: c.update(frames=[]), "no list of frames"),
            (lambda c: c["frames"][1].pop("file_path"), "frame 1: no file_path"),
            (lambda c: c["frames"][1].pop("transform_matrix"), "frame 1: no transform_matrix"),
            (lambda c: c["frames"][1].update(transform_matrix=np.eye(3).tolist()), r"\[4, 4\], got \[3, 3\]"),
            (lambda c: c["frames"][1].update(transform_matrix=(2 * np.eye(4)).tolist()), "not rigid"),
            (lambda c: c["frames"][1].update(transform_matrix=np.diag([1, 1, -1, 1]).tolist()), "not rigid"),
            (lambda c: c.update(fl_x="x"), "fl_x must be a number below"),
            (lambda c: c.update(fl_x=-5), "they must be positive"),
            (lambda c: c.pop("w"), "w and h"),
            (lambda c: c.pop("fl_x"), "no focal length"),
            (lambda c: c.update(camera_angle_x=4.0), "radians between"),
            (lambda c: c.update(camera_model="OPENCV_FISHEYE"), "'OPENCV_FISHEYE' is not read; undistort"),
            (lambda c: c.update(k1=-40.0), "distortion can't be undone"),
            (lambda c: c["frames"][1].update(file_path="images/none"), "image 'images/none' is not there"),
            (lambda c: c["frames"][1].update(file_path="../../../../etc/passwd"), "leads out of the input folder"),
            (lambda c: c["frames"][1].update(file_path="/etc/passwd"), "leads out of the input folder"),
            (lambda c: c["frames"][1].update(mask_path="/etc/passwd"), "leads out of the input folder"),
            (lambda c: c["frames"][1].update(file_path="a\0b"), "is not a path|is not there"),
            (misspelt, r"frame 1: no transform_matrix \(is transfom_matrix meant"),
            (lambda c: c["frames"][1].update(file_path="x" * 5000), "frame 1: .* is not there"),
            (lambda c: c["frames"][1]["transform_matrix"][0].__setitem__(0, 1e200), "not rigid"),
            (lambda c: c["frames"][1]["transform_matrix"][0].__setitem__(0, np.nan), "not finite"),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_what_is_wrong_is_named(self, own: Path, tmp_path: Path, edit: Callable, reason: str):
        change(own, edit)
        with pytest.raises(DataError, match=reason) as caught:
            run_import("posed", own, tmp_path / "out")
        assert str(own) in str(caught.value)

    def test_a_link_out_of_the_folder_is_not_followed(self, own: Path, tmp_path: Path):
        (own / "images/0001.png").rename(tmp_path / "secret.png")
        (own / "images/0001.png").symlink_to(tmp_path / "secret.png")
        with pytest.raises(DataError, match="leads out of the input folder"):
            run_import("posed", own, tmp_path / "out")

    def test_not_json(self, own: Path, tmp_path: Path):
        for text in ("{", "[]", "[" * 100_000):
            (own / "transforms.json").write_text(text)
            with pytest.raises(DataError, match=r"transforms\.json: "):
                run_import("posed", own, tmp_path / "out")


class TestMasks:
    @pytest.mark.parametrize(
        "place",
        [
            lambda path: path.parent.parent / "masks" / path.name,
            lambda path: path.parent.parent / "masks" / f"{path.name}.png",
            lambda path: path.parent / f"{path.stem}_mask.png",
        ],
    )
    def test_beside_the_images(self, own: Path, mug: tuple[Path, Scene], tmp_path: Path, place: Callable):
        run_import("posed", mug[0], tmp_path / "alpha", name="x")
        split_alpha(own, place)
        run_import("posed", own.parent.parent, tmp_path / "masks", name="x")
        one, other = read_all(tmp_path / "alpha")["mug/a"][1], read_all(tmp_path / "masks")["mug/a"][1]
        assert np.array_equal(one.masks, other.masks)
        assert one.meta == other.meta

    def test_named_in_the_file(self, own: Path, tmp_path: Path):
        split_alpha(own, lambda path: path.parent.parent / "shapes" / path.name)
        with pytest.raises(DataError, match=r"0000\.png: no mask: an object needs its silhouettes\. Give the images"):
            run_import("posed", own, tmp_path / "out")
        change(own, lambda c: [f.update(mask_path=f"shapes/{n:04d}.png") for n, f in enumerate(c["frames"])])
        assert run_import("posed", own, tmp_path / "out").views == 8

    @pytest.mark.parametrize("kind", ["numbers", "palette", "colour", "16 bits", "one bit"])
    def test_of_labels(self, own: Path, mug: tuple[Path, Scene], tmp_path: Path, kind: str):
        """0 and 1, however they are written: none of these is a picture that is dark all over."""
        (own / "masks").mkdir()
        for path in sorted((own / "images").iterdir()):
            rgba = np.asarray(Image.open(path))
            inside = rgba[..., 3] > 127
            image = Image.fromarray(inside.astype(np.uint16 if kind == "16 bits" else np.uint8))
            if kind == "palette":
                image.putpalette([0, 0, 0, 128, 0, 0])  # the first two colours of Pascal VOC
            elif kind == "colour":
                image = Image.fromarray(inside[..., None] * np.array([255, 0, 0], np.uint8))
            elif kind == "one bit":
                image = Image.fromarray(inside)
            image.save(own / "masks" / path.name)
            Image.fromarray(rgba[..., :3]).save(path)
        run_import("posed", own, tmp_path / "out", views=5)
        _, sample = read_all(tmp_path / "out")["object/a"]
        assert share_on_masks(in_unit_cube(mug[1].points, sample.meta), sample) >= 0.999

    def test_shared_by_two_images(self, own: Path, tmp_path: Path):
        """Two cameras that number their images alike need a folder of masks each."""
        rgba = {path.name: np.asarray(Image.open(path)) for path in sorted((own / "images").iterdir())}
        for number, (name, pixels) in enumerate(rgba.items()):
            (own / "images" / name).unlink()
            for kind, part in (("images", pixels[..., :3]), ("masks", pixels[..., 3])):
                place = own / kind / f"camera{number % 2}/{number // 2}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(part).save(place)

        def rename(content: dict) -> None:
            for number, frame in enumerate(content["frames"]):
                frame["file_path"] = f"images/camera{number % 2}/{number // 2}.png"

        change(own, rename)
        run_import("posed", own, tmp_path / "out")
        for path in (own / "masks/camera0").iterdir():
            path.rename(own / "masks" / path.name)
        import shutil

        shutil.rmtree(own / "masks/camera1")
        with pytest.raises(DataError, match=r"masks/0\.png: the mask of both .*camera0/0\.png and .*camera1/0\.png"):
            run_import("posed", own, tmp_path / "shared")

    def test_of_16_bits(self, own: Path, mug: tuple[Path, Scene], tmp_path: Path):
        split_alpha(own, lambda path: path.parent.parent / "masks" / path.name)
        for path in (own / "masks").iterdir():
            Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 257).save(path)
        run_import("posed", own, tmp_path / "out")
        _, sample = read_all(tmp_path / "out")["object/a"]
        assert share_on_masks(in_unit_cube(mug[1].points, sample.meta), sample) >= 0.999

    @pytest.mark.parametrize(
        ("rows", "value", "reason"),
        [
            (slice(0, 150), 0, "the mask is empty: the object is not in the picture"),
            (
                slice(0, 75),
                255,
                "the mask reaches the edge of the picture: the object is cut off, or the mask is inverted",
            ),
        ],
    )
    def test_a_view_that_does_not_show_the_object(
        self, own: Path, tmp_path: Path, rows: slice, value: int, reason: str, capsys: pytest.CaptureFixture[str]
    ):
        rgba = np.asarray(Image.open(own / "images/0003.png")).copy()
        rgba[rows, :, 3] = value
        Image.fromarray(rgba).save(own / "images/0003.png")
        with pytest.raises(DataError, match=f"0003.png: {reason}; remove the view, or skip_bad=true"):
            run_import("posed", own, tmp_path / "out")
        run_command("posed", own, tmp_path / "out", "skip_bad=true")
        assert f"skipped object/a: {(own / 'images/0003.png').resolve()}: {reason}" in capsys.readouterr().err
        assert len(read_all(tmp_path / "out")["object/a"][1].masks) == 7

    def test_a_view_whose_image_is_missing(self, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        (own / "images/0003.png").unlink()
        missing = r"frame 3: .*mug/a: image '\./images/0003' is not there; "
        with pytest.raises(DataError, match=f"{missing}remove the view, or skip_bad=true"):
            run_import("posed", own, tmp_path / "out")
        run_command("posed", own, tmp_path / "out", "skip_bad=true")
        assert re.search(f"skipped object/a: .*{missing}this view alone is left out", capsys.readouterr().err)
        _, sample = read_all(tmp_path / "out")["object/a"]
        assert len(sample.masks) == 7
        assert "./images/0003" not in sample.meta["source_images"]

    def test_inverted_masks_are_found_out(self, own: Path, tmp_path: Path):
        for path in (own / "images").iterdir():
            rgba = np.asarray(Image.open(path)).copy()
            rgba[..., 3] = 255 - rgba[..., 3]
            Image.fromarray(rgba).save(path)
        with pytest.raises(DataError, match="or the mask is inverted"):
            run_import("posed", own, tmp_path / "out")

    def test_too_few_sides(self, own: Path, tmp_path: Path):
        change(own, lambda c: c.update(frames=c["frames"][:1]))
        with pytest.raises(DataError, match="don't bound the object: they look from too few sides"):
            run_import("posed", own, tmp_path / "out")

    def test_cameras_of_other_views_contradict_the_masks(self, own: Path, tmp_path: Path):
        def shuffle(content: dict) -> None:
            poses = [frame["transform_matrix"] for frame in content["frames"]]
            for frame, pose in zip(content["frames"], poses[3:] + poses[:3], strict=True):
                frame["transform_matrix"] = pose

        change(own, shuffle)
        with pytest.raises(
            DataError, match=r"images/\d+\.png: masks and cameras contradict each other: .* covers only"
        ):
            run_import("posed", own, tmp_path / "out")

    def test_photographs_without_cameras_are_not_passed_over(
        self, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        shutil.copytree(own, own.parent / "b")
        (own.parent / "b/transforms.json").unlink()
        with pytest.raises(DataError, match=r"mug/b: no cameras: neither transforms\.json nor a COLMAP"):
            run_import("posed", own.parent.parent, tmp_path / "out")
        run_command("posed", own.parent.parent, tmp_path / "out", "skip_bad=true")
        assert "skipped mug/b: " in capsys.readouterr().err and list(read_all(tmp_path / "out")) == ["mug/a"]

    def test_cameras_with_the_other_axes(self, own: Path, mug: tuple[Path, Scene], tmp_path: Path):
        def to_opencv(content: dict) -> None:
            for frame in content["frames"]:
                matrix = np.array(frame["transform_matrix"]) @ np.diag([1, -1, -1, 1])
                frame["transform_matrix"] = matrix.tolist()

        run_import("posed", own, tmp_path / "opengl")
        change(own, to_opencv)
        with pytest.raises(DataError, match=r"contradict each other.*With the other axes they agree: axes=opencv"):
            run_import("posed", own, tmp_path / "out")
        run_import("posed", own, tmp_path / "out", axes="opencv", name="opengl")
        found, expected = (read_all(tmp_path / name)["object/a"][1] for name in ("out", "opengl"))
        assert np.array_equal(found.masks, expected.masks)
        assert found.world_to_camera == pytest.approx(expected.world_to_camera)

    def test_a_misspelt_focal_length(self, own: Path, tmp_path: Path):
        def misspell(content: dict) -> None:
            for name in ("fl_x", "fl_y", "w", "h"):
                content.pop(name)
            content["camera_angel_x"] = 0.7

        change(own, misspell)
        with pytest.raises(DataError, match=r"neither camera_angle_x nor fl_x is given \(is camera_angel_x meant"):
            run_import("posed", own, tmp_path / "out")

    def test_photographs_that_were_taken_with_another_axis_up(
        self, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        """Cameras of the scenes have +z up, roughly: another axis is remarked upon, the right one is not."""
        run_command("posed", own, tmp_path / "right", "up=+z")
        assert "note:" not in capsys.readouterr().err
        for wrong in ("+y", "-z"):
            run_command("posed", own, tmp_path / "wrong", f"up={wrong}", "overwrite=true")
            what = {"+y": "lays the objects on their side", "-z": "turns the objects upside down"}[wrong]
            assert f"note: the photographs were taken with +z up, and up={wrong} {what}" in capsys.readouterr().err

    def test_orientation_tags_are_remarked_upon(self, own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        """They are ignored; where that makes a mask another size than its image, the error says so."""
        split_alpha(own, lambda path: path.parent.parent / "masks" / path.name)
        image, tag = Image.open(own / "images/0002.png"), Image.Exif()
        tag[0x0112] = 6
        image.save(own / "images/0002.png", exif=tag)
        run_command("posed", own, tmp_path / "out")
        assert "note: 1 images have an orientation tag, which is ignored" in capsys.readouterr().err
        image.transpose(Image.Transpose.ROTATE_90).save(own / "images/0002.png", exif=tag)
        with pytest.raises(DataError, match=r"0002\.png: .* pixels, its image has .*; its orientation tag is ignored"):
            run_import("posed", own, tmp_path / "turned")

    def test_image_bombs(self, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("drwr_dist.image_files.MAX_PIXELS", 1000)
        with pytest.raises(DataError, match=r"0000\.png: 200 × 150 pixels; at most 1000 are read"):
            run_import("posed", own, tmp_path / "out")

    def test_usage(self, tmp_path: Path):
        with pytest.raises(UsageError, match="no such folder"):
            run_import("posed", tmp_path / "none", tmp_path / "out")
        with pytest.raises(UsageError, match=r"no object; expected .*transforms\.json or cameras\.txt"):
            run_import("posed", tmp_path, tmp_path / "out")
