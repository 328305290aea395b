"""Chromium through playwright, and what a person does on the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE = 30_000  # ms; machines that run tests are busy
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


# Keeps the edits that the page sends, as `window.sentEdits`.
_KEEP_EDITS = """
    window.sentEdits = [];
    const send = window.fetch;
    window.fetch = (address, options) => {
        if (String(address).endsWith("/edits")) {
            window.sentEdits.push(...JSON.parse(options.body).edits);
        }
        return send(address, options);
    };
"""


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
        page.set_default_timeout(PATIENCE)
        page.add_init_script(_KEEP_EDITS)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, address: str) -> None:
        """Open the page and wait until one can draw."""
        self.page.goto(address)
        self.page.wait_for_selector("#canvas[data-view]")
        self.until("document.getElementById('canvas').dataset.index !== undefined")

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

    def color(self, point: Sequence[float]) -> list[int]:
        """Return what is drawn at a point of the image, [r, g, b, a]."""
        script = """async ([x, y]) => {
            await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
            const canvas = document.getElementById("canvas");
            const [scale, left, top] = canvas.dataset.view.split(" ").map(Number);
            const at = [left + x * scale, top + y * scale].map((part) => part * devicePixelRatio);
            return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
        }"""
        return list(self.page.evaluate(script, list(point)))

    def wait_color(self, point: Sequence[float], color: list[int]) -> None:
        """Wait until a point of the image has a color."""
        for _ in range(PATIENCE // 100):
            if self.color(point) == color:
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"expected {color} at {point}, got {self.color(point)}")

    def saved(self) -> None:
        """Wait until everything is saved."""
        self.page.wait_for_selector("#saved[data-state=saved]")

    def segmented(self, version: int = 1, timeout: float = PATIENCE) -> None:
        """Wait for the segmentation after so many trainings."""
        self.until(f"Number(document.body.dataset.version) >= {version}", timeout)

    def until(self, condition: str, timeout: float = PATIENCE) -> None:
        """Wait until a condition in JavaScript holds; playwright's own way needs `eval`."""
        for _ in range(round(timeout / 50)):
            if self.page.evaluate(condition):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"expected {condition} within {timeout} ms")

    def banner(self, key: str) -> str:
        """Wait for a message and return its text."""
        found = self.page.wait_for_selector(f".banner[data-key={key}]")
        return str(found.get_attribute("data-text"))
