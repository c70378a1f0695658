"""report.html: what is in it, and that a real browser shows it and follows every control."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import chromium, complaints, wait
from PIL import Image
from rich.console import Console
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from drwr_dist import checkpoint
from drwr_dist.config import DataConfig, ModelConfig, TrainConfig
from drwr_dist.data.batch import as_tensor
from drwr_dist.data.index import load_index
from drwr_dist.data.sample import composite
from drwr_dist.data.stream import SampleTable
from drwr_dist.evaluate import EvaluateOptions, evaluate_run
from drwr_dist.metrics import nearest_distances
from drwr_dist.monitor import Monitor
from drwr_dist.report.packing import DISTANCE_SCALE, pack_clouds
from drwr_dist.report.page import write_page
from drwr_dist.report.selection import by_error, shown_objects, shown_views
from drwr_dist.run import load_run, save_config, untrained_model

HOSTILE = "</script><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def run(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated run with a history, without the training."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    model = ModelConfig(points=300, channels=4, hidden=16, decoder_std=0.1)
    config = TrainConfig(name="toy", data=DataConfig(path=str(toy_dataset)), model=model)
    save_config(folder, config, image_size=64)
    checkpoint.write(folder, 20, {"model": untrained_model(config, 64).state_dict()}, {})
    with Monitor(folder, 0) as monitor:
        for step in range(1, 21):
            monitor.log(step, {"loss": 1 / step, "unary": 0.5 / step, "learning_rate": 1e-4, "samples_per_second": 9.0})
        monitor.validation(20, {"objects": 3, "chamfer": 7.0, "f_score_1": 0.1, "silhouette_iou": 0.4})
    for split in ("val", "test"):
        evaluate_run(load_run(folder), EvaluateOptions(split=split, predictions=False), Console(quiet=True))
    return folder


def content_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="content">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def text_of(page: str, name: str) -> bytes:
    found = re.search(rf'<script type="text/plain" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found
    return base64.b64decode(found.group(1))


def test_the_page_holds_the_predictions_and_their_distances(run: Path, toy_dataset: Path):
    """Decoded by other code: the clouds are the network's, the distances those to the whole ground truth."""
    page = (run / "report.html").read_text()
    content = content_of(page)
    table = SampleTable.select(load_index(str(toy_dataset)), "test")
    assert sorted(content["rows"]) == sorted(table.keys) == sorted(entry["key"] for entry in content["objects"])
    assert set(content["splits"]) == {"val", "test"} and content["head"]["step"] == 20
    entry, raw = content["objects"][1], text_of(page, "points-1")
    sample = table.read(table.keys.index(entry["key"]), with_points=True)
    views, points, truth = entry["views"], entry["points"], entry["truth"]
    assert (views, points, truth) == (5, 300, min(2000, len(sample.points)))
    steps = np.frombuffer(raw, "<i2", count=3 * (views * points + truth)).astype(float) / 32767 * entry["scale"]
    clouds = steps[: 3 * views * points].reshape(views, points, 3)
    images = composite(sample.images, sample.masks, 1.0)
    with torch.no_grad():
        expected = load_run(run).model(torch.stack([as_tensor(image) for image in images]))
    assert np.abs(clouds - expected.numpy()).max() < 2e-5
    shades = np.frombuffer(raw, np.uint8, offset=2 * len(steps))
    assert len(shades) == views * (points + truth)
    forward = nearest_distances(expected[3], torch.from_numpy(sample.points)).numpy()
    stored = shades[3 * points : 4 * points] / 255 * DISTANCE_SCALE
    assert np.abs(stored - forward.clip(max=DISTANCE_SCALE)).max() < DISTANCE_SCALE / 255
    assert np.mean(entry["chamfer"]) == pytest.approx(content["rows"][entry["key"]]["chamfer"], abs=1e-3)


def test_the_page_needs_nothing_else(run: Path):
    page = (run / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page) and "@import" not in page


def test_selection_takes_both_ends_and_evenly_between():
    objects = {f"c/{number:03d}": {"chamfer": float(number % 500)} for number in range(500)}
    shown = shown_objects(objects, limit=40)
    assert len(shown) == len(set(shown)) == 40
    assert shown[:10] == by_error(objects)[:10] and shown[-10:] == by_error(objects)[-10:]
    gaps = np.diff([objects[key]["chamfer"] for key in shown[10:30]])
    assert gaps.max() - gaps.min() <= 1
    overlap = {"c/a": {"silhouette_iou": 0.9}, "c/b": {"silhouette_iou": 0.2}, "c/c": {}}
    assert by_error(overlap) == ["c/a", "c/b", "c/c"]


@pytest.mark.parametrize(("objects", "views", "expected"), [(1, 8, 8), (200, 5, 1), (26, 8, 8), (5000, 5, 1)])
def test_views_are_limited_by_size(objects: int, views: int, expected: int):
    assert shown_views(objects, views, points=2000) == expected


def test_packing_keeps_clouds_of_any_size():
    clouds = [np.array([[3.0, -2.0, 0.5]]), np.array([[0.25, 0.0, -3.0]])]
    packed, scale = pack_clouds(clouds, [np.array([0.05]), np.array([7.0])])
    raw = base64.b64decode(packed)
    back = np.frombuffer(raw, "<i2", count=6).reshape(2, 1, 3) / 32767 * scale
    assert np.abs(back - np.stack(clouds)).max() < 1e-4
    assert list(raw[12:]) == [128, 255]


@pytest.mark.slow
def test_a_browser_shows_it_and_follows_every_control(run: Path):
    with chromium() as window:
        window.get((run / "report.html").as_uri())
        wait(window, "document.body.dataset.ready")
        _click_through(Page(window))
        _click_objects(Page(window))
        assert complaints(window) == []


class Page:
    """The opened report."""

    def __init__(self, window: Any):
        self.window = window

    def find(self, selector: str) -> Any:
        return self.window.find_element(By.CSS_SELECTOR, selector)

    def state(self) -> dict[str, str]:
        return self.window.execute_script("return {...document.getElementById('viewer').dataset}")

    def picture(self, selector: str = "#viewer") -> bytes:
        """What is to be seen once nothing moves any more (or as it is, where it never stands still)."""
        before = b""
        for _ in range(5):
            before, now = self.find(selector).screenshot_as_png, before
            if before == now:
                break
        return before

    def keys(self) -> list[str]:
        lines = self.window.find_elements(By.CSS_SELECTOR, "#objects tbody tr")
        return [line.get_attribute("data-key") for line in lines]


def alike(one: bytes, other: bytes) -> bool:
    """Say whether two pictures show the same; on a busy machine a pixel may still be on its way."""
    first, second = (
        np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=float) for picture in (one, other)
    )
    return float(np.abs(first - second).mean()) < 1.0


def _click_through(page: Page) -> None:
    window, find, state, picture = page.window, page.find, page.state, page.picture
    assert find("h1").text == "toy: test" and not find("#no-webgl").is_displayed()
    assert state()["show"] == "both" and int(state()["points"]) == 300 and int(state()["truth"]) > 500

    seen = {"both": picture()}  # every choice draws another picture
    for show in ("prediction", "truth", "beside"):
        find(f'#show button[data-value="{show}"]').click()
        assert state()["show"] == show and find(f'#show [data-value="{show}"]').get_attribute("aria-pressed") == "true"
        seen[show] = picture()
    assert len(set(seen.values())) == 4 and find("#labels").is_displayed()
    find('#show button[data-value="both"]').click()
    for colour in ("height", "distance", "plain"):
        find(f'#colour button[data-value="{colour}"]').click()
        seen[colour] = picture()
    assert alike(seen["plain"], seen["both"]) and len({seen[name] for name in ("height", "distance", "plain")}) == 3
    assert not find("#legend").is_displayed()

    ActionChains(window).click_and_hold(find("#viewer canvas")).move_by_offset(140, 30).release().perform()
    turned = picture()
    assert turned != seen["both"]
    wheel = "new WheelEvent('wheel', {deltaY: 400, cancelable: true})"
    window.execute_script(f"document.querySelector('#viewer canvas').dispatchEvent({wheel})")
    assert picture() != turned
    find("#input-camera").click()
    as_input = picture()
    find("#reset").click()
    assert alike(picture(), seen["both"]) and as_input != seen["both"]
    window.execute_script("const s = document.getElementById('size'); s.value = 3; s.dispatchEvent(new Event('input'))")
    assert picture() != seen["both"]
    find("#spin").click()
    first = picture()
    wait(window, "new Promise(done => setTimeout(() => done(true), 300))")
    assert picture() != first
    find("#spin").click()


def _click_objects(page: Page) -> None:
    window, find, state, lines = page.window, page.find, page.state, page.keys
    rows = window.execute_script("return CONTENT.rows")
    for name in ("chamfer", "f_score_2", "silhouette_iou"):
        ways = []
        for _ in range(2):
            find(f'#objects th[data-name="{name}"]').click()
            ways.append([rows[key][name] for key in lines()])
        increasing = sorted(row[name] for row in rows.values())
        assert sorted(ways) == sorted([increasing, increasing[::-1]])
    find('#objects th[data-name="key"]').click()
    assert lines() == sorted(rows)
    find("#objects tbody tr:nth-child(2)").click()
    assert state()["key"] == sorted(rows)[1] == find("#key").text
    find("#next").click()
    assert state()["key"] == sorted(rows)[2]
    find("body").send_keys(Keys.ARROW_LEFT)
    assert state()["key"] == sorted(rows)[1]
    find("#previous").click()
    assert state()["key"] == sorted(rows)[0]
    find("#filter").send_keys("brick")
    assert lines() == sorted(key for key in rows if key.startswith("brick"))
    find("#filter").clear()
    find("#filter").send_keys(" ")
    errors = sorted(rows, key=lambda key: rows[key]["chamfer"])
    find("#worst button").click()
    assert state()["key"] == errors[-1]
    find("#best button").click()
    assert state()["key"] == errors[0]

    wait(window, "document.querySelectorAll('#views figure').length == 5")
    over = page.picture("#views")
    find("#over").click()
    wait(window, "true")
    assert page.picture("#views") != over
    find("#views figure:nth-child(3)").click()
    wait(window, "document.querySelector('#views figure:nth-child(3)').className == 'input'")
    assert state()["view"] == "2"
    find('#splits button[data-value="val"]').click()
    assert find("#splits [aria-pressed=true]").text == "val"
    wait(window, "document.querySelectorAll('#curves .uplot').length >= 5")
    assert [window.execute_script(f"return tickLabel({value})") for value in ("1e-4", "2.5", "null")] == [
        "1e-4",
        "2.5",
        "",
    ]
    for width in (1360, 620):  # no table, chart or shape reaches out of the page
        window.set_window_size(width, 1500)
        wait(window, "document.documentElement.scrollWidth <= window.innerWidth")
    window.set_window_size(1360, 1500)
    find("#log").click()
    assert len(window.find_elements(By.CSS_SELECTOR, "#curves .uplot")) >= 5
    assert window.find_elements(By.CSS_SELECTOR, "#definitions dt")


@pytest.mark.slow
def test_names_are_never_taken_for_html(run: Path, tmp_path: Path):
    """A dataset's names can hold anything; the page shows them as they are."""
    page = (run / "report.html").read_text()
    content = content_of(page)
    key = content["objects"][0]["key"]
    content["objects"] = content["objects"][:1]
    content["objects"][0]["key"] = f"brick/{HOSTILE}"
    content["rows"] = {f"brick/{HOSTILE}": content["rows"][key]}
    content["order"] = [f"brick/{HOSTILE}"]
    texts = {
        f"brick/{HOSTILE}": {"points": base64.b64encode(text_of(page, "points-0")).decode(), "images": "", "masks": ""}
    }
    write_page(tmp_path, HOSTILE, content, texts)
    with chromium() as window:
        window.get((tmp_path / "report.html").as_uri())
        wait(window, "document.body.dataset.ready")
        assert window.title == HOSTILE and window.find_element(By.ID, "key").text == f"brick/{HOSTILE}"
