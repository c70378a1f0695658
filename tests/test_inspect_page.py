"""`shards inspect page=…` in a real browser: pictures are shown, and dragging turns the ground truth."""

from __future__ import annotations

from pathlib import Path

from browser import chromium, complaints, wait
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from drwr_dist.data.index import load_index
from drwr_dist.data.inspection import write_page

DRAWN = """[...document.querySelectorAll('canvas')].map(canvas => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.filter((value, place) => place % 4 === 3 && value > 0).length;
})"""
PICTURE = "document.querySelector('canvas').toDataURL()"


def test_the_page_shows_views_and_turns_the_ground_truth(toy_dataset: Path, tmp_path: Path) -> None:
    index = load_index(str(toy_dataset))
    write_page(index, str(tmp_path / "page.html"), 3)
    with chromium() as window:
        window.get((tmp_path / "page.html").as_uri())
        wait(window, "document.readyState === 'complete'")
        assert complaints(window) == []
        sizes = window.execute_script("return [...document.images].map(image => image.naturalWidth)")
        objects = len(window.find_elements(By.TAG_NAME, "section"))
        assert objects and len(sizes) == objects * index.views and set(sizes) == {index.image_size}
        drawn = window.execute_script(f"return {DRAWN}")
        assert len(drawn) == objects and min(drawn) > 100, "every object's points are drawn"
        before = window.execute_script(f"return {PICTURE}")
        canvas = window.find_element(By.TAG_NAME, "canvas")
        ActionChains(window).drag_and_drop_by_offset(canvas, 40, 15).perform()
        assert window.execute_script(f"return {PICTURE}") != before
        assert complaints(window) == []
