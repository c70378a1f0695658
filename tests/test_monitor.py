"""TensorBoard: what a run's event files hold, read by TensorBoard's own reader and shown by its own server."""

from __future__ import annotations

import io
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import chromium, wait
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from toy import REPOSITORY, SMALL_RUN, drwr, rows

from drwr_dist import pictures
from drwr_dist.monitor import LAYOUT, TAGS, Monitor

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}
SCORES = ("chamfer", "chamfer_predicted_to_target", "f_score_1", "silhouette_iou")


@pytest.fixture(scope="module")
def restarted(toy_dataset: Path, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after 6 of 10 steps, with a checkpoint at 4, and continued with another world size."""
    storage = tmp_path_factory.mktemp("runs")
    settings = (f"data={toy_dataset}", f"storage={storage}", "name=seen", *SMALL_RUN)
    settings += (f"cluster.address={ray_address}",)
    settings += ("validation.every=5", "monitor.pictures_every=5", "checkpoint.every=4", "steps=10")
    for workers in (1, 2):
        done = drwr("train", *settings, f"workers={workers}", RAY_AUTH_MODE="disabled")
        assert done.returncode == 0, done.stderr
        if workers == 1:  # as if it had been killed after step 8: the last checkpoint and the result are gone
            run = storage / "seen"
            for name in ("result.json", "checkpoints/step-00000010"):
                subprocess.run(["rm", "-r", str(run / name)], check=True)
    return storage / "seen"


@pytest.fixture(scope="module")
def events(restarted: Path) -> EventAccumulator:
    return EventAccumulator(str(restarted / "tensorboard"), size_guidance=EVERYTHING).Reload()


def test_a_restarted_run_is_one_clean_curve(events: EventAccumulator, restarted: Path):
    for tag in ("loss/total", "time/forward", "speed/workers"):
        assert [event.step for event in events.Scalars(tag)] == list(range(1, 11)), tag
    assert [event.value for event in events.Scalars("speed/workers")] == [1] * 8 + [2] * 2
    assert [event.step for event in events.Scalars("validation/chamfer")] == [5, 10]
    assert [event.step for event in events.Images("pictures/projections")] == [1, 5, 10]
    losses = [event.value for event in events.Scalars("loss/total")]
    assert losses == pytest.approx([row["loss"] for row in rows(restarted)], rel=1e-5)


def test_every_documented_tag_is_there_and_every_tag_documented(events: EventAccumulator):
    found = events.Tags()
    tags = {*found["scalars"], *found["images"], *found["tensors"]}
    text = (REPOSITORY / "docs" / "monitoring.md").read_text()
    documented = set(re.findall(r"^\| `([a-z_0-9/<>]+)`", text, re.MULTILINE))
    patterns = {re.compile(re.sub(r"<[a-z_ ]+>", r"[^/]+", tag)) for tag in documented}
    own = {tag for tag in tags if not tag.startswith(("_", "custom_scalars", "clouds", "final"))}
    assert not {tag for tag in own if not any(pattern.fullmatch(tag) for pattern in patterns)}
    assert set(TAGS.values()) <= documented
    for tag in ("loss/unary", "loss/repulsion", "loss/coverage", "optimizer/gradient_norm", "memory/process_gib"):
        assert tag in found["scalars"]
    assert {f"validation/{name}" for name in SCORES} <= set(found["scalars"])


def test_the_phases_of_a_step_add_up_to_its_time(events: EventAccumulator):
    phases = [tag for tag in events.Tags()["scalars"] if tag.startswith("time/")]
    assert len(phases) == 7
    total = sum(events.Scalars(tag)[3].value for tag in phases)
    step = 4 / events.Scalars("speed/samples_per_second")[3].value  # a batch of 4, logged at every step
    assert 0.5 * step < total < 1.1 * step


def test_the_all_reduce_has_a_time_of_its_own(events: EventAccumulator):
    """Rank 0 exchanges gradients only where there are two."""
    exchanged = [event.value for event in events.Scalars("time/all_reduce")]
    assert exchanged[:8] == [0] * 8 and all(value > 0 for value in exchanged[8:])


def test_pictures_clouds_text_and_hparams(events: EventAccumulator):
    found = events.Tags()
    for name in ("input", "projections", "smooth_silhouettes", "coverage"):
        assert events.Images(f"pictures/{name}")[-1].encoded_image_string.startswith(b"\x89PNG")
    clouds = {tag for tag in found["tensors"] if tag.startswith("clouds/")}
    for what in ("prediction", "ground_truth"):
        assert {f"clouds/0/{what}_VERTEX", f"clouds/1/{what}_VERTEX", f"clouds/1/{what}_COLOR"} <= clouds
    event = events.Tensors("clouds/0/prediction_VERTEX")[-1]
    assert [dimension.size for dimension in event.tensor_proto.tensor_shape.dim] == [1, 64, 3]
    config = events.Tensors("config/text_summary")
    assert len(config) == 1 and b"global_batch: 4" in config[0].tensor_proto.string_val[0]
    layout = layout_pb2.Layout()
    layout.ParseFromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    assert [category.title for category in layout.category] == list(LAYOUT)
    start = plugin_data_pb2.HParamsPluginData()
    start.ParseFromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert start.session_start_info.hparams["global_batch"].number_value == 4
    assert events.Scalars("final/test/chamfer")


def test_lines_for_machines_say_who_wrote_them(restarted: Path):
    validated = [json.loads(line) for line in (restarted / "validation.jsonl").read_text().splitlines()]
    assert [row["step"] for row in validated] == [5, 10]
    for row in [*rows(restarted), *validated]:
        assert (row["run"], row["rank"], row["node"]) == ("seen", 0, socket.gethostname())


def test_every_pattern_of_the_layout_finds_a_tag(events: EventAccumulator):
    scalars = events.Tags()["scalars"]
    for charts in LAYOUT.values():
        for _, patterns in charts.values():
            assert all(any(re.fullmatch(pattern, tag) for tag in scalars) for pattern in patterns)


def test_coverage_tells_hit_missed_and_outside():
    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[:, :32] = 255
    xy = torch.tensor([[0.1, 0.1], [0.9, 0.9], [float("inf"), 0.1], [1.5, 0.2]])
    picture = pictures.coverage_picture(mask, xy)
    assert tuple(picture[6, 6]) == pictures.COVERED and tuple(picture[57, 57]) == pictures.OUTSIDE
    assert tuple(picture[40, 10]) == pictures.MISSED and tuple(picture[10, 40]) == (255, 255, 255)
    over = pictures.points_over_silhouette(mask, xy)
    assert tuple(over[6, 6]) == pictures.POINT == tuple(over[57, 57]) and (over == pictures.POINT).all(-1).sum() == 2


def test_purged_steps_do_not_come_back(tmp_path: Path):
    for start, stop in ((0, 6), (3, 8), (5, 9)):
        with Monitor(tmp_path, start) as monitor:
            for step in range(start + 1, stop + 1):
                monitor.log(step, {"loss": float(start)})
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance=EVERYTHING).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [
        (1, 0), (2, 0), (3, 0), (4, 3), (5, 3), (6, 5), (7, 5), (8, 5), (9, 5),
    ]  # fmt: skip


@pytest.mark.slow
def test_tensorboard_draws_it_in_a_browser(restarted: Path, tmp_path: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("tensorboard")
    arguments = [program, "--logdir", restarted / "tensorboard", "--port", str(port), "--host", "127.0.0.1"]
    with (tmp_path / "log").open("w") as log, chromium(1400, 1000) as window:
        server = subprocess.Popen(arguments, stdout=log, stderr=log)
        try:
            for page, words in PAGES.items():
                _open(window, f"http://127.0.0.1:{port}/#{page}")
                for word in words:
                    wait(window, _anywhere(word), 60)
            _open(window, f"http://127.0.0.1:{port}/#mesh")
            wait(window, _canvases(), 60)
            wait(window, "new Promise(done => setTimeout(() => done(true), 3000))")
            with Image.open(io.BytesIO(window.get_screenshot_as_png())) as screen:
                pixels = np.asarray(screen.convert("RGB")).astype(int)[180:, 380:]
            coloured = (np.ptp(pixels, axis=-1) > 40).sum()  # points of ground truth, neither grey nor white
            assert coloured > 300
        finally:
            server.terminate()
            server.wait(20)


PAGES = {
    "images": ["pictures/coverage", "pictures/projections"],
    "custom_scalars": list(LAYOUT),
    "hparams": ["final/test/chamfer"],
    "text": ["config/text_summary"],
}


def _open(window, address: str) -> None:
    for _ in range(40):
        try:
            window.get("about:blank")
            window.get(address)
            return
        except Exception:
            wait(window, "new Promise(done => setTimeout(() => done(true), 500))")
    raise AssertionError(f"{address} does not answer")


def _anywhere(word: str) -> str:
    """JavaScript that looks for a word in the page and in the shadow roots of TensorBoard's components."""
    return (
        "(function find(root) { return [...root.querySelectorAll('*')].some("
        "each => (each.shadowRoot && find(each.shadowRoot)) || [...each.childNodes].some("
        f"node => node.nodeType === 3 && node.data.includes({word!r}))); }})(document)"
    )


def _canvases() -> str:
    return (
        "(function find(root) { return [...root.querySelectorAll('*')].some("
        "each => each.tagName === 'CANVAS' || (each.shadowRoot && find(each.shadowRoot))); })(document)"
    )
