from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import trimesh
from browser import chromium, complaints, wait
from pictures import disc, turned
from PIL import Image
from toy import call, drwr, untrained_run

import drwr_dist
from drwr_dist.config import ModelConfig, TrainConfig
from drwr_dist.errors import DataError, UsageError
from drwr_dist.images import prepare
from drwr_dist.point_cloud import WRITERS, read_ply, write_ply
from drwr_dist.predict import PredictOptions, plan
from drwr_dist.run import load_run, save_config
from drwr_dist.turntable import write_turntable


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint, without the training."""
    return untrained_run(tmp_path_factory.mktemp("run"))


def test_an_opaque_alpha_is_as_good_as_none(run: Path, tmp_path: Path):
    picture = np.full((80, 80, 4), (100, 100, 100, 255), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "screenshot.png")
    with pytest.warns(UserWarning, match="nothing cuts the object out"):
        from_file = prepare(tmp_path / "screenshot.png", 64, 1.0)
    with pytest.warns(UserWarning, match="nothing cuts the object out"):
        assert np.array_equal(drwr_dist.load(run).prepare(picture), from_file)


def test_a_file_is_read_alike_with_a_mask_in_memory(run: Path, tmp_path: Path):
    picture = disc(64, (20, 40), 30)
    Image.fromarray(picture).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turned())
    Image.fromarray(picture[..., 3] // 255).save(tmp_path / "labels.png")  # 0 and 1, as datasets of masks have them
    network = drwr_dist.load(run)
    expected = network.prepare(picture)
    assert np.array_equal(network.prepare(tmp_path / "turned.png"), expected)
    assert np.array_equal(network.prepare(tmp_path / "turned.png", mask=picture[..., 3]), expected)
    assert np.array_equal(network.prepare(picture, mask=tmp_path / "labels.png"), expected)
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        network.prepare(tmp_path / "gone.png", mask=picture[..., 3])


def test_nothing_is_written_over_an_image_that_is_read(run: Path, tmp_path: Path):
    Image.fromarray(disc(64, (32, 32), 30)).save(tmp_path / "a.gif")
    before = (tmp_path / "a.gif").read_bytes()
    done = call("predict", f"run={run}", f"images={tmp_path / 'a.gif'}", f"output={tmp_path}", "turntable=gif")
    assert done.returncode == 1 and "a.gif: its points would be written over an image" in done.stderr
    assert (tmp_path / "a.gif").read_bytes() == before


def test_predict_writes_a_cloud_per_image_and_reports_the_rest(run: Path, tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(disc(200, (100, 100), 70)).save(images / "good.png")
    Image.fromarray(disc(200, (100, 100), 70)).convert("RGB").save(images / "flat.jpg")
    (images / "bad.png").write_bytes(b"no")
    done = drwr("predict", f"run={run}", f"images={images}", f"output={tmp_path / 'out'}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 2
    assert "error: " in done.stderr and "bad.png: not an image" in done.stderr
    assert "warning: " in done.stderr and "flat.jpg: nothing cuts the object out" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["flat.ply", "good.ply"]
    cloud = read_ply(tmp_path / "out" / "good.ply")
    assert cloud.shape == (50, 3) and np.abs(cloud).max() <= 0.5
    one = call("predict", f"run={run}", f"images={images / 'good.png'}", f"output={tmp_path / 'npz'}", "format=npz")
    assert one.returncode == 0, one.stderr
    with np.load(tmp_path / "npz" / "good.npz", allow_pickle=False) as archive:
        assert archive["points"] == pytest.approx(cloud, abs=1e-6)  # batches differ in rounding


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["run=/nowhere"], ["/nowhere"]),
        (["images=/nowhere/*.png"], ["/nowhere/*.png"]),
        (["format=stl"], ["format=stl", "ply"]),
        (["masks=/nowhere"], ["masks=/nowhere"]),
        (["workers=-1"], ["workers=-1"]),
        (["crop=maybe"], ["crop=maybe"]),
        (["turntable=avi"], ["turntable=avi", "mp4"]),
    ],
)
def test_predict_refuses_mistakes(run: Path, tmp_path: Path, arguments: list[str], names: list[str]):
    Image.fromarray(disc(64, (32, 32), 20)).save(tmp_path / "a.png")
    done = call("predict", f"run={run}", f"images={tmp_path / 'a.png'}", f"output={tmp_path}", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    for name in names:
        assert name in done.stderr


def test_two_images_of_one_stem_do_not_overwrite_each_other(run: Path, tmp_path: Path):
    for suffix in ("png", "webp"):
        Image.fromarray(disc(64, (32, 32), 20)).save(tmp_path / f"same.{suffix}")
    done = call("predict", f"run={run}", f"images={tmp_path}", f"output={tmp_path / 'out'}")
    assert done.returncode == 1 and "same.webp" in done.stderr and "rename" in done.stderr


def test_a_run_without_checkpoint_or_with_a_broken_configuration(tmp_path: Path):
    config = TrainConfig(model=ModelConfig(points=50, channels=4, hidden=16))
    save_config(tmp_path, config, image_size=64)
    done = call("predict", f"run={tmp_path}", "images=nothing")
    assert done.returncode == 2
    (tmp_path / "config.yaml").write_text("steps: [")
    with pytest.raises(DataError, match=r"config\.yaml"):
        load_run(tmp_path)


def test_ply_round_trip_and_damage(tmp_path: Path):
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    write_ply(tmp_path / "a.ply", points)
    assert np.array_equal(read_ply(tmp_path / "a.ply"), points)
    (tmp_path / "a.ply").write_bytes((tmp_path / "a.ply").read_bytes()[:-5])
    with pytest.raises(DataError, match=r"a\.ply"):
        read_ply(tmp_path / "a.ply")


@pytest.mark.parametrize("kind", sorted(WRITERS))
def test_every_format_is_read_by_others(tmp_path: Path, kind: str):
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (31, 3)).astype(np.float32)
    path = tmp_path / f"cloud.{kind}"
    WRITERS[kind](path, points)
    if kind == "npz":
        with np.load(path, allow_pickle=False) as archive:
            found = archive["points"]
    elif kind == "csv":
        assert path.read_text().splitlines()[0] == "x,y,z"
        found = np.loadtxt(path, delimiter=",", skiprows=1)
    elif kind == "obj":
        lines = [line.split() for line in path.read_text().splitlines()]
        found = np.array([line[1:] for line in lines if line[0] == "v"], float)
        assert [line[1] for line in lines if line[0] == "p"] == [str(number) for number in range(1, 32)]
    else:
        scene = trimesh.load(path)
        found = (next(iter(scene.geometry.values())) if kind == "glb" else scene).vertices
    assert found == pytest.approx(points, abs=1e-6)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_a_mask_cuts_out_as_an_alpha_does(run: Path, tmp_path: Path):
    """The same object, once with alpha, once as a JPEG-like opaque photograph beside a mask of its stem."""
    cut = disc(300, (90, 200), 60)
    photograph = cut[..., :3].copy()
    photograph[cut[..., 3] == 0] = (40, 160, 40)
    for folder in ("alpha", "photos", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(cut).save(tmp_path / "alpha" / "a.png")
    Image.fromarray(photograph).save(tmp_path / "photos" / "a.webp", lossless=True)
    Image.fromarray(photograph).save(tmp_path / "photos" / "b.png")
    Image.fromarray(cut[..., 3]).save(tmp_path / "masks" / "a_mask.png")
    done = call("predict", f"run={run}", f"images={tmp_path}/alpha", f"output={tmp_path}/one", "format=npz")
    assert done.returncode == 0, done.stderr
    done = call(
        "predict", f"run={run}", f"images={tmp_path}/photos", f"masks={tmp_path}/masks", f"output={tmp_path}/two",
        "format=npz", "turntable=true",
    )  # fmt: skip
    assert done.returncode == 1 and "b.png" in done.stderr and "masks=" in done.stderr  # b has no mask
    with np.load(tmp_path / "one" / "a.npz") as one, np.load(tmp_path / "two" / "a.npz") as two:
        assert one["points"] == pytest.approx(two["points"], abs=1e-6)
    with Image.open(tmp_path / "two" / "a.gif") as turning:
        assert turning.n_frames == 36
        frames = [np.asarray(turning.convert("L")) for place in (0, 9) if turning.seek(place) is None]
    assert all((frame < 200).any() for frame in frames) and (frames[0] != frames[1]).any()


def test_images_and_masks_in_one_folder(tmp_path: Path):
    """As shards name them, and as others do; an image is never its own mask."""
    for name in ("a.image.png", "a.mask.png", "b.jpg", "b_mask.png", "c.png", "d_mask.png"):
        Image.fromarray(disc(64, (32, 32), 20)[..., :3]).save(tmp_path / name)
    folder = str(tmp_path)
    tasks, problems = plan(PredictOptions(images=folder, masks=folder))
    pairs = {task.image.name: task.mask.name for task in tasks if task.mask}
    assert pairs == {"a.image.png": "a.mask.png", "b.jpg": "b_mask.png"} and len(tasks) == 2
    assert len(problems) == 2 and "c.png" in problems[0] and "d_mask.png" in problems[1]
    tasks, _ = plan(PredictOptions(images=f"{folder}/*.image.png", masks=f"{folder}/*.mask.png"))
    assert [(task.image.name, task.mask and task.mask.name) for task in tasks] == [("a.image.png", "a.mask.png")]
    tasks, problems = plan(PredictOptions(images=f"{folder}/c.png", masks=f"{folder}/c.png"))
    assert not tasks and "c.png" in problems[0]


def test_a_photograph_that_nothing_cuts_out_is_warned_of(run: Path, tmp_path: Path):
    cut = disc(100, (50, 50), 30)
    on_white, on_green = cut[..., :3].copy(), cut[..., :3].copy()
    on_white[cut[..., 3] == 0] = 250
    on_green[cut[..., 3] == 0] = (40, 160, 40)
    for name, picture in (("white.png", on_white), ("green.png", on_green)):
        Image.fromarray(picture).save(tmp_path / name)
    done = call("predict", f"run={run}", f"images={tmp_path}", f"output={tmp_path / 'out'}")
    assert done.returncode == 0 and len(list((tmp_path / "out").glob("*.ply"))) == 2
    assert done.stderr.count("warning:") == 1 and "green.png" in done.stderr and "no mask" in done.stderr


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    points = np.random.default_rng(0).uniform((-0.4, -0.1, -0.02), (0.4, 0.1, 0.02), (300, 3))
    path = tmp_path_factory.mktemp("film") / "plank.mp4"
    write_turntable(path, points, "mp4")
    return path


def test_an_mp4_is_one_turn_of_the_points(film: Path):
    """Read by another decoder: a plank is broad twice a turn, and narrow between."""
    frames, video = [], cv2.VideoCapture(str(film))
    while (found := video.read())[0]:
        frames.append(found[1])
    assert len(frames) == 90 and frames[0].shape == (512, 512, 3)
    widths = [np.ptp(np.nonzero((frame < 150).any(-1).any(0))[0]) for frame in frames]
    for broad, narrow in ((0, 22), (45, 67)):
        assert abs(widths[broad] - widths[narrow]) > 100
    assert abs(widths[0] - widths[45]) < 40 and abs(widths[22] - widths[67]) < 40
    assert [each.name for each in film.parent.iterdir()] == [film.name]


@pytest.mark.slow
def test_a_browser_plays_the_mp4(film: Path):
    page = film.with_suffix(".html")
    page.write_text(f'<video src="{film.name}" muted autoplay></video>')
    with chromium(600, 600) as window:
        window.get(page.as_uri())
        wait(window, "document.querySelector('video').currentTime > 0.3", 60)
        video = window.execute_script("const v = document.querySelector('video'); return [v.videoWidth, v.duration]")
        assert video == [512, pytest.approx(3.6, abs=0.1)] and complaints(window) == []


def test_a_mask_of_another_size_is_named(run: Path, tmp_path: Path):
    Image.fromarray(disc(80, (40, 40), 20)).save(tmp_path / "a.png")
    Image.fromarray(disc(90, (40, 40), 20)[..., 3]).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: 90 × 90 pixels, but .*a\.png has 80 × 80"):
        drwr_dist.load(run)(tmp_path / "a.png", mask=tmp_path / "m.png")


def test_load_gives_what_predict_writes(run: Path, tmp_path: Path):
    Image.fromarray(disc(200, (100, 100), 70)).save(tmp_path / "a.png")
    model = drwr_dist.load(run, device="cpu")
    points = model(tmp_path / "a.png")
    done = call("predict", f"run={run}", f"images={tmp_path / 'a.png'}", f"output={tmp_path / 'out'}", "format=ply")
    assert done.returncode == 0, done.stderr
    assert np.array_equal(read_ply(tmp_path / "out" / "a.ply"), points)
    pixels = disc(200, (100, 100), 70)
    for image in (pixels, Image.fromarray(pixels)):
        assert np.array_equal(model(image), points)
    assert np.array_equal(model(np.ascontiguousarray(pixels[..., :3]), mask=pixels[..., 3] > 0), points)
    with pytest.raises(UsageError, match="uint8"):
        model(pixels.astype(float))
    with pytest.raises(UsageError, match="mask"):
        model(pixels, mask=np.ones((3, 3), bool))


@pytest.mark.slow
def test_many_images_on_ray_give_the_same_files(run: Path, tmp_path: Path):
    (tmp_path / "images").mkdir()
    for number in range(7):
        Image.fromarray(disc(120, (60, 40 + number), 30)).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "images" / "x.png").write_bytes(b"broken")
    for workers in (1, 2):
        done = drwr(
            "predict", f"run={run}", f"images={tmp_path}/images/*.png", f"output={tmp_path}/{workers}",
            f"workers={workers}", "batch=2", "format=csv",
        )  # fmt: skip
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "x.png" in done.stderr
    for number in range(7):
        one, two = ((tmp_path / workers / f"{number}.csv").read_bytes() for workers in ("1", "2"))
        assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_an_exported_network_gives_the_same_points(run: Path, tmp_path: Path, kind: str):
    """Run by onnxruntime and torch.export's own loader, with another batch size than it was exported with."""
    suffix = {"onnx": "onnx", "torch": "pt2"}[kind]
    path = tmp_path / f"network.{suffix}"
    done = call("export", f"run={run}", f"format={kind}", f"output={path}")
    assert done.returncode == 0, done.stderr
    images = torch.rand(5, 3, 64, 64)
    with torch.no_grad():
        expected = load_run(run).model(images).numpy()
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found = session.run(None, {"images": images.numpy()})[0]
    else:
        found = torch.export.load(path).module()(images).detach().numpy()
    assert np.abs(found - expected).max() < 1e-5 < np.ptp(expected)
