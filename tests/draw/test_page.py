"""The page in a real browser."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder

from ._browser import Person
from ._program import Running, running

ROOT = Path(__file__).parents[2]
ORANGE = [255, 127, 14, 255]  # class 1

Open = Callable[[str], Person]


def scribbles(root: Path, name: str = "disc0") -> np.ndarray:
    with Image.open(root / "scribbles" / f"{name}.png") as file:
        return np.asarray(file)


def draw_two(person: Person) -> None:
    person.choose("background")
    person.draw((10, 8), (80, 12.3), (150, 8))
    person.choose("object")
    person.draw((50, 60), (75, 66.6))


def test_two_strokes_bring_a_segmentation(program: Running, open_tab: Open, root: Path) -> None:
    me = open_tab(program.address)
    assert "draw a line through the middle" in me.page.locator("#coach").inner_text()
    before = me.color((60, 40))
    draw_two(me)
    me.segmented()
    me.page.wait_for_selector("#engine[data-phase=done]")
    assert me.page.locator("#coach").is_hidden()
    assert me.color((60, 40)) != before and me.color((150, 100)) == [40, 60, 50, 255]
    me.page.locator("#opacity").fill("100")
    me.until("document.querySelectorAll('.thumb canvas[style]').length === 3")
    assert me.color((60, 40)) == ORANGE
    me.page.keyboard.press("s")
    assert me.color((60, 40)) == before
    me.page.locator("#show-hints").check()
    me.page.wait_for_selector("#hints-legend:not([hidden])")
    (sample,) = ScribbleFolder(DataConfig(root=root), "train")
    assert set(np.unique(sample.target)) == {0, 1, 2}


def test_page_and_program_paint_the_same_pixels(
    program: Running, open_tab: Open, root: Path
) -> None:
    """The canvas shows what the page painted, the file what the program painted."""
    me = open_tab(program.address)
    draw_two(me)
    me.page.locator("[data-tool=eraser]").click()
    me.draw((20, 3), (70, 71.7), (33, 100))
    edits = me.page.evaluate("window.sentEdits")
    painted = me.page.evaluate(
        """async (edits) => {
            const { LabelMap } = await import("./raster.js");
            const map = new LabelMap(160, 120);
            for (const edit of edits) map.apply(edit);
            return [...map.labels];
        }""",
        edits,
    )
    assert len(edits) >= 3  # long strokes are sent in parts
    assert painted == scribbles(root).ravel().tolist()


def test_undo_redo_and_reload(program: Running, open_tab: Open, root: Path) -> None:
    me = open_tab(program.address)
    me.draw((10, 8), (150, 8))
    first = scribbles(root)
    me.choose("object")
    me.draw((50, 8), (75, 66))
    second = scribbles(root)
    me.page.keyboard.press("Control+z")
    me.saved()
    assert np.array_equal(scribbles(root), first)
    me.page.locator("#redo").click()
    me.saved()
    assert np.array_equal(scribbles(root), second) and me.page.locator("#redo").is_disabled()
    me.page.locator("#next").click()
    me.page.locator("#previous").click()
    me.page.wait_for_selector("#undo:enabled")  # the history outlives a look at another image
    me.open(program.address)
    assert me.color((60, 8)) == [91, 141, 239, 255]
    me.draw((100, 100))
    assert np.array_equal(scribbles(root)[:90], second[:90])


@contextmanager
def separate(root: Path, port: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the program as a process of its own; yield it and its address."""
    command = [sys.executable, "-m", "tests.draw._program", str(root), str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def test_program_killed_in_a_stroke(open_tab: Open, root: Path) -> None:
    """A part of a long stroke is saved already; the rest waits in the browser."""
    with separate(root, 0) as (process, address):
        port = int(address.split(":")[2].split("/")[0])
        me = open_tab(address)
        mouse = me.page.mouse
        mouse.move(*me.position((10, 20)))
        mouse.down()
        mouse.move(*me.position((60, 20)), steps=5)
        me.until("window.sentEdits.some((edit) => edit.points.at(-1)[0] > 59)")  # not yet the end
        me.saved()
        assert (scribbles(root)[20, 12:58] == 0).all()
        process.send_signal(signal.SIGKILL)
        process.wait()
        mouse.move(*me.position((140, 20)), steps=5)
        mouse.up()
        assert "in this browser and will be saved then" in me.banner("lost")
    assert (scribbles(root)[20, 70:] == 255).all()
    with separate(root, port) as (_, address):  # the same port, a new token
        me.page.wait_for_selector(".banner:has-text('has a new address')")
        me.page.close()
        again = open_tab(address)
        assert "on disc0 had not been saved when the program stopped" in again.banner("adopted")
        again.saved()
        assert (scribbles(root)[20, 12:138] == 0).all()


def test_full_disk(
    program: Running, open_tab: Open, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = open_tab(program.address)
    me.draw((10, 8), (150, 8))
    before = scribbles(root)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        me.draw((10, 100), (150, 100), saved=False)
        assert "not saved" in me.banner("saving")
        assert "the disk is full" in me.banner("saving")
        assert np.array_equal(scribbles(root), before)
    me.saved()  # it tries again by itself
    assert (scribbles(root)[100, 12:148] == 0).all()


def test_second_tab_is_told_and_sees_the_strokes(
    program: Running, open_tab: Open, root: Path
) -> None:
    me, other = open_tab(program.address), open_tab(program.address)
    for person in (me, other):
        assert "open in 2 tabs" in person.banner("tabs")
    me.draw((10, 50), (150, 50))
    other.wait_color((60, 50), [91, 141, 239, 255])
    other.choose("object")
    other.draw((10, 100), (150, 100))
    me.wait_color((60, 100), ORANGE)
    labels = scribbles(root)
    assert labels[50, 60] == 0 and labels[100, 60] == 1
    other.page.close()
    me.page.wait_for_selector(".banner[data-key=tabs]", state="detached")


def test_change_by_another_program_is_not_overwritten(
    program: Running, open_tab: Open, root: Path
) -> None:
    me = open_tab(program.address)
    me.draw((10, 8), (150, 8))
    theirs = np.full((120, 160), 255, np.uint8)
    theirs[50:60] = 1
    Image.fromarray(theirs).save(root / "scribbles" / "disc0.png")
    me.draw((10, 100), (150, 100), saved=False)
    assert "disc0 was changed in another tab or by another program" in me.banner("conflict")
    assert np.array_equal(scribbles(root), theirs)
    assert me.color((60, 55)) == ORANGE
    me.page.get_by_role("button", name="Draw it again").click()
    me.saved()
    labels = scribbles(root)
    assert (labels[55] == 1).all() and (labels[100, 12:148] == 0).all()


def test_classes_by_name_key_and_color(program: Running, open_tab: Open, root: Path) -> None:
    me = open_tab(program.address)
    me.page.locator("#add-class").click()
    me.page.keyboard.type("object")
    me.page.keyboard.press("Enter")
    me.page.wait_for_selector(".error:has-text('There is a class \"object\" already')")
    me.page.keyboard.type(" two")
    me.page.keyboard.press("Enter")
    me.page.wait_for_selector(".class-name:has-text('object two')")
    me.page.keyboard.press("1")
    me.draw((10, 8), (150, 8))
    me.page.keyboard.press("3")
    me.draw((10, 100), (150, 100))
    me.page.locator(".class label", has_text="background").dblclick()
    me.page.keyboard.type("ground")
    me.page.keyboard.press("Enter")
    me.page.wait_for_selector(".class-name:has-text('ground')")
    assert (root / "classes.txt").read_text() == "ground\nobject\nobject two\n"
    assert set(np.unique(scribbles(root))) == {0, 2, 255}


def test_files_that_cannot_be_used_are_explained(open_tab: Open, root: Path) -> None:
    (root / "scribbles").mkdir()
    Image.new("L", (10, 10)).save(root / "scribbles" / "disc0.png")
    (root / "images" / "disc1.png").write_bytes(b"no image")
    before = (root / "scribbles" / "disc0.png").read_bytes()
    with running(root) as program:
        me = open_tab(program.address)
        note = me.page.locator("#note")
        note.wait_for()
        assert "is 10 x 10, but its image is 160 x 120" in note.inner_text()
        me.draw((10, 8), (150, 8))
        assert (root / "scribbles" / "disc0.png").read_bytes() == before
        me.page.keyboard.press(".")
        me.page.wait_for_selector("#note:has-text('disc1.png')")
        assert "This image cannot be shown" in note.inner_text()
        me.page.wait_for_selector(".thumb.broken")
        me.page.keyboard.press(",")
        me.page.wait_for_selector("#note:has-text('10 x 10')")
        (root / "scribbles" / "disc0.png").unlink()
        note.get_by_role("button", name="Check again").click()
        note.wait_for(state="hidden")
        me.draw((10, 8), (150, 8))
        assert scribbles(root)[8, 60] == 0


def test_export(program: Running, open_tab: Open, root: Path) -> None:
    me = open_tab(program.address)
    me.page.locator("#export-button").click()
    me.page.locator("#export-start").click()
    me.page.wait_for_selector("#export-result:has-text('no segmentation yet')")
    me.page.locator("#export-close").click()
    draw_two(me)
    me.segmented()
    me.page.locator("#export-button").click()
    for kind in ("coco", "segmenter"):
        me.page.locator(f"#kinds input[value={kind}]").check()
    me.page.locator("#export-start").click()
    me.page.wait_for_selector("#export-result:has-text('Written to exports/')")
    (place,) = (root / "exports").iterdir()
    assert sorted(path.name for path in place.iterdir()) == [
        "classes.txt",
        "coco.json",
        "label_maps",
        "segmenter.pt",
    ]
    assert len([*(place / "label_maps").iterdir()]) == 3


def test_an_export_that_ends_before_its_request_is_answered(
    program: Running, open_tab: Open, root: Path
) -> None:
    me = open_tab(program.address)
    draw_two(me)
    me.segmented()

    def answer_late(route: Any) -> None:
        answer = route.fetch()
        while not (root / "exports").exists():
            time.sleep(0.05)
        time.sleep(1)  # the event of the end reaches the page
        route.fulfill(response=answer)

    me.page.route("**/api/export", answer_late)
    me.page.locator("#export-button").click()
    with me.page.expect_response("**/api/export"):
        me.page.locator("#export-start").click()
    me.page.wait_for_timeout(500)  # the page has read the answer
    assert me.page.locator("#export-result").is_visible()


def test_keys_and_zoom(program: Running, open_tab: Open, root: Path) -> None:
    me = open_tab(program.address)
    before = me.position((80, 60))
    zoom = me.page.locator("#zoom-value").inner_text()
    me.page.mouse.move(*before)
    me.page.mouse.wheel(0, -300)
    me.until(f"document.getElementById('zoom-value').textContent !== {zoom!r}")
    assert me.position((80, 60)) == pytest.approx(before, abs=1)  # zooms around the pointer
    assert me.position((81, 60))[0] - before[0] > 1.5 * 4
    me.page.keyboard.down("Space")
    me.page.mouse.down()
    me.page.mouse.move(before[0] + 50, before[1] + 30)
    me.page.mouse.up()
    me.page.keyboard.up("Space")
    assert me.position((80, 60)) == pytest.approx((before[0] + 50, before[1] + 30), abs=1)
    assert not (root / "scribbles").exists()
    me.page.keyboard.press("f")
    me.page.locator("#canvas").focus()
    me.page.keyboard.press("]")
    me.page.locator("#strip [aria-selected=true]").focus()
    me.page.keyboard.press("ArrowRight")
    me.page.wait_for_selector("#image-name:has-text('disc1')")
    assert me.page.evaluate("document.activeElement.getAttribute('aria-label')") == "disc1"


def test_two_thousand_images(open_tab: Open, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    first = tmp_path / "many" / "image0000.png"
    Image.new("RGB", (32, 24), (90, 60, 30)).save(first)
    for number in range(1, 2000):
        (tmp_path / "many" / f"image{number:04}.png").hardlink_to(first)
    with running(tmp_path / "many") as program:
        me = open_tab(program.address)
        assert me.page.locator("#image-count").inner_text() == "1 of 2000"
        me.page.locator("#strip").evaluate("strip => strip.scrollLeft = strip.scrollWidth")
        me.page.locator("[aria-label=image1999]").click()
        me.page.wait_for_selector("#image-name:has-text('image1999')")
        assert me.page.locator(".thumb").count() < 30
