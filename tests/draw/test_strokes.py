"""Edits of label maps: what a stroke covers, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blpseg.draw.strokes import parse_edit
from blpseg.errors import UserError


def blank() -> np.ndarray:
    return np.full((40, 60), 255, np.uint8)


def stroke(*points: tuple[float, float], radius: float = 3.0, label: int = 1) -> dict[str, Any]:
    return {"kind": "stroke", "points": [*map(list, points)], "radius": radius, "label": label}


def test_stroke_covers_the_pixels_whose_center_is_near_its_line() -> None:
    labels = blank()
    parse_edit(stroke((10, 10), (45.5, 31.25))).apply(labels)
    y, x = np.mgrid[:40, :60] + 0.5
    direction = np.array([35.5, 21.25])
    along = ((x - 10) * direction[0] + (y - 10) * direction[1]) / (direction @ direction)
    along = along.clip(0, 1)
    distance = np.hypot(x - 10 - along * direction[0], y - 10 - along * direction[1])
    assert np.array_equal(labels == 1, distance <= 3)


def test_point_outside_the_image_paints_what_is_inside() -> None:
    labels = blank()
    parse_edit(stroke((-1, 20), radius=4)).apply(labels)
    assert (labels[20, :3] == 1).all() and labels[20, 4] == 255
    parse_edit(stroke((-100, -100))).apply(labels)


def test_long_line_is_whole_and_its_memory_is_bounded() -> None:
    import tracemalloc

    labels = np.full((3000, 4000), 255, np.uint8)
    tracemalloc.start()
    parse_edit(stroke((1, 1), (3990, 2990), radius=2)).apply(labels)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
    assert (labels[:2990] == 1).any(1).all()


def test_patch_replaces_its_rectangle() -> None:
    labels = blank()
    parse_edit({"kind": "patch", "box": [5, 6, 3, 2], "runs": [2, 4, 255, 2]}).apply(labels)
    assert labels[6, 5:8].tolist() == [2, 2, 2] and labels[7, 5:8].tolist() == [2, 255, 255]
    assert (labels != 255).sum() == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "edits: expected objects, got list"),
        ({"kind": "fill"}, 'kind: expected "stroke" or "patch", got \'fill\''),
        (stroke(), "points: expected 1 to 20000 points"),
        (stroke((1, float("inf"))), r"points: expected \[x, y\] in pixels, got \[1, inf\]"),
        (stroke((1, 2), radius=0), "radius: expected more than 0 .*, got 0"),
        (stroke((1, 2), label=256), "label: expected whole numbers 0 to 255, got 256"),
        (stroke((1, 2), label=True), "label: expected whole numbers 0 to 255, got True"),
        ({"kind": "patch", "box": [0, 0, 2], "runs": []}, r"box: expected \[left, top, "),
        ({"kind": "patch", "box": [-1, 0, 2, 2], "runs": [1, 4]}, "box: expected whole numbers"),
        ({"kind": "patch", "box": [0, 0, 2, 2], "runs": [1, 5]}, "runs: expected 2 x 2 pixels"),
        ({"kind": "patch", "box": [0, 0, 2, 2], "runs": [1]}, "runs: expected .label, count"),
    ],
)
def test_what_is_no_edit_is_refused(content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_edit(content)


def test_edits_must_fit_the_image_and_its_classes() -> None:
    with pytest.raises(UserError, match="label: expected a class 0 to 2, or 255 to erase, got 3"):
        parse_edit(stroke((1, 1), label=3)).check((40, 60), 3)
    patch = parse_edit({"kind": "patch", "box": [58, 0, 3, 1], "runs": [1, 3]})
    with pytest.raises(UserError, match="box: expected a rectangle inside 60 x 40 pixels"):
        patch.check((40, 60), 3)
    patch = parse_edit({"kind": "patch", "box": [0, 0, 1, 1], "runs": [7, 1]})
    with pytest.raises(UserError, match="got 7"):
        patch.check((40, 60), 3)
