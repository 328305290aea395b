"""Fingers and a pen on the page, as Chromium's devices send them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ._browser import Person
from ._program import Running
from .test_page import scribbles

Open = Callable[[str], Person]
Point = tuple[float, float]


class Hand:
    """Fingers and a pen at a page; points are those of the image."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.devices: Any = person.page.context.new_cdp_session(person.page)
        touch = {"enabled": True, "maxTouchPoints": 5}
        self.devices.send("Emulation.setTouchEmulationEnabled", touch)

    def touch(self, *fingers: Point) -> None:
        """Put fingers on the screen, or move them there."""
        self._touch(fingers, "touchMove" if len(fingers) == self.down else "touchStart")

    def lift(self) -> None:
        """Take all fingers away."""
        self._touch((), "touchEnd")

    down = 0

    def _touch(self, fingers: Sequence[Point], kind: str) -> None:
        places = [self.person.position(finger) for finger in fingers]
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        self.devices.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        self.down = len(fingers)

    def pen(self, kind: str, point: Point) -> None:
        """Press, move or release the pen."""
        x, y = self.person.position(point)
        event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
        event |= {"pointerType": "pen", "buttons": int(kind != "mouseReleased")}
        self.devices.send("Input.dispatchMouseEvent", event)


@pytest.fixture
def hand(program: Running, open_tab: Open) -> Hand:
    """Open the page."""
    return Hand(open_tab(program.address))


def test_one_finger_draws_and_two_zoom(hand: Hand, root: Path) -> None:
    me = hand.person
    hand.touch((30, 20))
    for x in (60, 90, 120):
        hand.touch((x, 20))
    hand.lift()
    me.saved()
    me.page.wait_for_selector("#undo:enabled")
    drawn = scribbles(root)
    assert (drawn[20, 32:118] == 0).all()
    first, second = me.position((60, 60)), me.position((100, 60))
    hand.touch((60, 60))  # a stroke begins, and is taken back
    hand.touch((60, 60), (100, 60))
    hand.touch((50, 60), (110, 60))
    me.until(f"document.getElementById('canvas').dataset.view.split(' ')[1] < {first[0] - 65}")
    hand.lift()
    spread = me.position((100, 60))[0] - me.position((60, 60))[0]
    assert spread == pytest.approx(1.5 * (second[0] - first[0]), rel=0.02)
    me.saved()
    assert np.array_equal(scribbles(root), drawn)


def test_a_pen_draws_while_the_hand_lies_on_the_screen(hand: Hand, root: Path) -> None:
    me = hand.person
    hand.touch((140, 110))  # the hand comes first
    hand.pen("mousePressed", (20, 60))
    hand.pen("mouseMoved", (70, 60))
    hand.touch((140, 110), (150, 110))
    hand.pen("mouseMoved", (120, 60))
    hand.pen("mouseReleased", (120, 60))
    hand.lift()
    me.page.wait_for_selector("#undo:enabled")
    me.saved()
    drawn = scribbles(root)
    assert (drawn[60, 22:118] == 0).all() and (drawn[100:] == 255).all()
    before = me.position((80, 60))
    hand.touch((80, 60))  # fingers pan from now on
    hand.touch((90, 70))
    me.until("document.getElementById('canvas').dataset.panning !== undefined")
    hand.lift()
    assert me.position((80, 60)) != before
    assert np.array_equal(scribbles(root), drawn)


def test_the_other_end_of_a_pen_erases(hand: Hand, root: Path) -> None:
    """Chromium's test devices have no eraser: the page gets the events that a pen sends."""
    me = hand.person
    me.draw((10, 60), (150, 60))
    me.page.evaluate(
        """([x, y]) => {
            const canvas = document.getElementById("canvas");
            canvas.setPointerCapture = () => {}; // refuses pointers that do not exist
            const pen = { pointerId: 77, pointerType: "pen", button: 5, clientX: x, clientY: y };
            for (const [type, buttons] of [["pointerdown", 32], ["pointerup", 0]]) {
                canvas.dispatchEvent(new PointerEvent(type, { ...pen, buttons }));
            }
        }""",
        list(me.position((80, 60))),
    )
    me.until("window.sentEdits.at(-1).label === 255")
    me.saved()
    assert scribbles(root)[60, 80] == 255 and scribbles(root)[60, 40] == 0
