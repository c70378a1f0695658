"""A real browser without a window: Chromium, with WebGL drawn in software."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait


@contextmanager
def chromium(width: int = 1360, height: int = 1500) -> Iterator[webdriver.Chrome]:
    """Start Chromium; skip the test where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("no Chromium here: install the packages chromium and chromium-driver")
    options = Options()
    options.binary_location = browser
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}",
        "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--hide-scrollbars",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    try:
        yield window
    finally:
        window.quit()


def wait(window: webdriver.Chrome, script: str, seconds: float = 20) -> object:
    """Wait until a JavaScript expression is true, and return it."""
    return WebDriverWait(window, seconds, poll_frequency=0.05).until(lambda it: it.execute_script(f"return {script}"))


def complaints(window: webdriver.Chrome) -> list[str]:
    """What the page has complained of: errors, and requests that left the file."""
    return [entry["message"] for entry in window.get_log("browser") if entry["level"] == "SEVERE"]
