"""Chromium through playwright, and what a person does on the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
]


def problem() -> str | None:
    """Return why no browser can be started, or None."""
    try:
        import playwright.sync_api  # noqa: F401
    except ModuleNotFoundError:
        return "playwright is not installed"
    return None if CHROMIUM else "chromium is not installed"


@contextmanager
def browser() -> Iterator[Any]:
    """Start Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


class Person:
    """Someone at the page.

    Args:
        page: playwright's page.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.errors: list[str] = []
        page.set_default_timeout(8000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, address: str) -> None:
        """Open the page and wait until one can draw."""
        self.page.goto(address)
        self.page.wait_for_selector("#canvas[data-view]")
        self.page.wait_for_function("document.getElementById('spinner').hidden")

    def position(self, point: Sequence[float]) -> tuple[float, float]:
        """Return where a point of the image, (x, y), is on the screen."""
        view = self.page.locator("#canvas").get_attribute("data-view")
        scale, x, y = map(float, view.split())
        box = self.page.locator("#canvas").bounding_box()
        return box["x"] + x + point[0] * scale, box["y"] + y + point[1] * scale

    def draw(self, *points: Sequence[float], saved: bool = True) -> None:
        """Draw a line through points of the image and wait until it is saved."""
        mouse = self.page.mouse
        mouse.move(*self.position(points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.position(point), steps=4)
        mouse.up()
        if saved:
            self.saved()

    def choose(self, name: str) -> None:
        """Choose a class."""
        self.page.locator(".class label", has_text=name).click()

    def saved(self) -> None:
        """Wait until everything is saved."""
        self.page.wait_for_selector("#saved[data-state=saved]")

    def segmented(self, version: int = 1, timeout: float = 8000) -> None:
        """Wait for the segmentation after so many trainings."""
        self.page.wait_for_function(
            f"Number(document.body.dataset.version) >= {version}", timeout=timeout
        )

    def banner(self, key: str) -> str:
        """Wait for a message and return its text."""
        found = self.page.wait_for_selector(f".banner[data-key={key}]")
        return str(found.get_attribute("data-text"))
