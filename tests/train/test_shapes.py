"""From lines to label maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from blpseg.data.formats.scribblesup import read_scribblesup
from blpseg.data.layouts.context import CONTEXT_CLASSES
from blpseg.data.layouts.voc import VOC_CLASSES
from blpseg.data.shapes import (
    Drawing,
    ScribbleThinning,
    Shape,
    draw_drawing,
    label_of,
    shrink_stroke,
)
from blpseg.errors import UserError

FILE = Path(__file__).parents[1] / "data" / "scribbles" / "2007_000032.xml"


def stroke(*points: tuple[float, float], tag: str = "bird") -> Shape:
    return Shape("line", tag, np.array(points, float), "file.xml:7")


def drawn(*shapes: Shape, size: tuple[int, int] = (20, 12), **options: object) -> np.ndarray:
    return draw_drawing(Drawing("image", size, list(shapes)), VOC_CLASSES, **options)


@pytest.mark.parametrize("width", [1, 3])
def test_lines_are_pillows(width: int) -> None:
    expected = Image.new("L", (40, 30), 255)
    draw = ImageDraw.Draw(expected)
    lines = {1: [(5, 6), (21, 10), (25, 18)], 0: [(0, 28), (39, 26)], 20: [(33, 4)]}
    for label, line in lines.items():
        draw.line(line, fill=label, width=width)
        for x, y in (line[0], line[-1]):  # round ends, which are the end pixels at width 1
            r = width // 2
            draw.ellipse((x - r, y - r, x + r, y + r), fill=label)
            draw.point((x, y), fill=label)
    found = draw_drawing(read_scribblesup(FILE), VOC_CLASSES, width=width)
    assert found.dtype == np.uint8 and np.array_equal(found, np.asarray(expected))
    assert set(np.unique(found)) == {0, 1, 20, 255}
    assert found[4, 33] == 20  # a stroke of one point is a dot


def test_width_by_hand() -> None:
    assert (drawn(stroke((3, 5), (15, 5))) == 3).sum() == 13
    wide = drawn(stroke((3, 5), (15, 5)), width=3) == 3
    assert wide[4:7, 3:16].all()
    assert wide.any(1).nonzero()[0].tolist() == [4, 5, 6]
    assert wide.any(0).nonzero()[0].tolist() == list(range(2, 17))
    with pytest.raises(UserError, match="width: expected at least 1 pixel, got 0"):
        drawn(stroke((1, 1)), width=0)


def test_points_outside_are_moved_to_the_edge() -> None:
    found = drawn(stroke((-5, 3), (4, 3)), stroke((17, -9), (17, 99), tag="cat"))
    assert (found[3, :5] == 3).all() and (found[:, 17] == 8).all()
    assert (found != 255).sum() == 5 + 12


def test_later_shapes_cover_earlier_ones_and_polygons_are_filled() -> None:
    square = Shape("polygon", "cat", np.array([(2, 2), (8, 2), (8, 8), (2, 8)], float), "")
    dots = Shape("points", "dog", np.array([(4, 4), (15, 4)], float), "")
    found = drawn(square, stroke((0, 5), (19, 5)), dots)
    assert (found == 8).sum() == 7 * 7 - 7 - 1  # less the line's and a dot's
    assert (found[5] == 3).all()
    assert found[4, 4] == found[4, 15] == 12 and (found == 12).sum() == 2


@pytest.mark.parametrize(
    ("tag", "voc"),
    [
        ("plane", "aeroplane"),
        ("bike", "bicycle"),
        ("table", "diningtable"),
        ("plant", "pottedplant"),
        ("monitor", "tvmonitor"),
        ("background", "background"),
        ("diningtable", "diningtable"),
    ],
)
def test_short_names(tag: str, voc: str) -> None:
    assert VOC_CLASSES[label_of(stroke((0, 0), tag=tag), VOC_CLASSES)] == voc


def test_names_of_context() -> None:
    for tag, label in {
        "plane": 1,
        "table": 11,
        "diningtable": 11,
        "monitor": 20,
        "wood": 59,
    }.items():
        assert label_of(stroke((0, 0), tag=tag), CONTEXT_CLASSES) == label
    assert len(CONTEXT_CLASSES) == 60


def test_unknown_tags_are_named() -> None:
    with pytest.raises(
        UserError, match=r"^file.xml:7: 'unicorn' is no class; expected one of back"
    ):
        drawn(stroke((0, 0), tag="unicorn"))


def test_shrinking_keeps_the_middle() -> None:
    line = np.array([(0, 0), (4, 0), (10, 0)], float)
    assert shrink_stroke(line, 0) is line
    assert shrink_stroke(line, 0.4).tolist() == [[2, 0], [4, 0], [8, 0]]
    assert shrink_stroke(line, 0.9).tolist() == [[4.5, 0], [5.5, 0]]
    assert shrink_stroke(line, 1).tolist() == [[5, 0], [5, 0]]
    assert shrink_stroke(line[:1], 0.5).tolist() == [[0, 0]]
    corner = np.array([(0, 0), (6, 0), (6, 4)], float)
    assert shrink_stroke(corner, 0.5).tolist() == [[2.5, 0], [6, 0], [6, 1.5]]
    still = np.array([(3, 3), (3, 3)], float)
    assert shrink_stroke(still, 0.5).tolist() == [[3, 3], [3, 3]]


def test_reductions_are_nested() -> None:
    rows = [stroke((2, y), (17, y)) for y in range(12)]
    whole = drawn(*rows) == 3
    shrunk = [drawn(*rows, thinning=ScribbleThinning(shrink=share)) == 3 for share in (0.4, 0.8, 1)]
    assert all((a & b == b).all() for a, b in zip([whole, *shrunk], shrunk, strict=False))
    assert [int(one.sum()) for one in shrunk] == [12 * 10, 12 * 4, 12 * 1]
    dropped = [
        drawn(*rows, thinning=ScribbleThinning(drop=share, seed=4)) == 3 for share in (0.3, 0.6, 1)
    ]
    assert all((a & b == b).all() for a, b in zip([whole, *dropped], dropped, strict=False))
    counts = [int(one.any(1).sum()) for one in dropped]
    assert 12 > counts[0] > counts[1] > counts[2] == 0
    other = drawn(*rows, thinning=ScribbleThinning(drop=0.3, seed=5)) == 3
    assert (other != dropped[0]).any()
    namesake = Drawing("another image", (20, 12), rows)
    other = draw_drawing(namesake, VOC_CLASSES, thinning=ScribbleThinning(drop=0.3, seed=4)) == 3
    assert (other != dropped[0]).any()  # not the same strokes in every image


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrink": 1.5}, "shrink: expected 0 to 1, got 1.5"),
        ({"drop": -0.1}, "drop: expected 0 to 1, got -0.1"),
        ({"drop": float("nan")}, "drop: expected 0 to 1, got nan"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
)
def test_reductions_out_of_range(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        ScribbleThinning(**options)
    assert str(caught.value) == message
