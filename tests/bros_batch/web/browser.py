"""A real browser, headless."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator

import urllib3
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from tests.services import unavailable

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip


@contextlib.contextmanager
def browser(*, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """Start Chromium with a new profile. A narrow window emulates a phone."""
    binary = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        unavailable("Chromium with its driver")
    assert binary is not None and driver is not None
    with contextlib.ExitStack() as stack:

        def start() -> webdriver.Chrome:
            profile = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="bros-browser-", ignore_cleanup_errors=True)
            )
            options = Options()
            options.binary_location = binary
            for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
                options.add_argument(flag)
            options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
            return webdriver.Chrome(options=options, service=Service(driver))

        try:
            chrome = start()
        except urllib3.exceptions.TimeoutError:  # on a busy machine, Chromium has hung as it started
            chrome = start()
        try:
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            if width < 600:
                screen = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
                chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
            yield chrome
        finally:
            chrome.quit()
