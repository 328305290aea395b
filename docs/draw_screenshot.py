"""Make the pictures of blpseg draw in README and docs/draw.md: python -m docs.draw_screenshot.

It opens the page in Chromium as tests/draw does, draws on photographs of scikit-image, and waits
for `blpseg.ScribbleSegmenter`. Needs the `test` extra and Chromium.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image

from blpseg.data.photographs import write_photographs
from blpseg.draw.session import Segmenter
from tests.draw._browser import Person, browser, problem
from tests.draw._program import running

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1280, "height": 800}
SKY = [(60, 60), (180, 110), (150, 220)]  # on rocket, in pixels
ROCKET = [(322, 150), (322, 290)]
PATIENCE = 300_000  # ms; the first training loads the network


def segmenter(num_classes: int) -> Segmenter:
    """Make the segmenter that `blpseg draw` uses."""
    from blpseg import ScribbleSegmenter

    return ScribbleSegmenter(num_classes=num_classes)


def save(name: str, screenshot: bytes) -> None:
    """Write a screenshot, with no more bytes than needed."""
    with Image.open(io.BytesIO(screenshot)) as image:
        image.convert("RGB").save(IMAGES / f"{name}.png", optimize=True)


def main() -> None:
    """Draw, wait, and save the page in light and dark, and with the hints."""
    if reason := problem():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "photos"
        write_photographs(folder)
        Image.fromarray(skimage.data.rocket()).save(folder / "images" / "rocket.png")
        with running(folder, segmenter) as program, browser() as chromium:
            page = chromium.new_page(viewport=SIZE, color_scheme="light")
            me = Person(page)
            me.open(program.address)
            page.locator("[aria-label^=rocket]").click()
            me.until("document.getElementById('canvas').dataset.index === '3'")
            for name, line in (("background", SKY), ("spacecraft", ROCKET)):
                me.choose(name)
                me.draw(*line)
            page.locator("[aria-label^=astronaut]").click()
            me.choose("person")
            me.until("document.getElementById('canvas').dataset.index === '0'")
            page.wait_for_selector("#engine[data-phase=done]", timeout=PATIENCE)
            me.until("document.querySelectorAll('.thumb canvas[style]').length === 4", 20_000)
            page.mouse.move(*me.position((250, 330)))
            page.wait_for_timeout(500)
            save("draw", page.screenshot())
            page.emulate_media(color_scheme="dark")
            page.locator("[aria-label^=coffee]").click()
            me.until("document.getElementById('canvas').dataset.index === '2'")
            page.wait_for_selector("#engine[data-phase=done]", timeout=PATIENCE)
            page.locator("#show-hints").check()
            page.wait_for_timeout(1000)
            save("draw-hints", page.screenshot())


if __name__ == "__main__":
    main()
