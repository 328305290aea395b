"""Files of annotation programs: what is read from them, and how the unreadable ones are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from blpseg.data.formats.cvat import read_cvat
from blpseg.data.formats.labelme import read_labelme
from blpseg.data.formats.reader import read_drawings
from blpseg.data.formats.scribblesup import read_scribblesup
from blpseg.data.formats.xml_elements import read_xml
from blpseg.errors import UserError

FILES = Path(__file__).parents[1] / "data" / "scribbles"
SCRIBBLESUP, LABELME, CVAT = FILES / "2007_000032.xml", FILES / "labelme.json", FILES / "cvat.xml"


@pytest.fixture
def spoilt(tmp_path: Path) -> Callable[[Path, str, str], Path]:
    """Return a maker of copies in which one text is replaced, once."""

    def make(original: Path, old: str, new: str) -> Path:
        text = original.read_text()
        assert old in text
        path = tmp_path / original.name
        path.write_text(text.replace(old, new, 1))
        return path

    return make


def error_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_drawings(path)
    text = str(caught.value)
    assert text.startswith(f"{path}:")
    return text.removeprefix(f"{path}:")


def test_scribblesup() -> None:
    drawing = read_scribblesup(SCRIBBLESUP)
    assert drawing.name == "2007_000032" and drawing.size == (40, 30)
    assert [(shape.kind, shape.tag) for shape in drawing.shapes] == [
        ("line", "plane"),
        ("line", "background"),
        ("line", "monitor"),
    ]
    assert drawing.shapes[0].points.tolist() == [[5, 6], [21, 10], [25, 18]]
    assert drawing.shapes[1].where == f"{SCRIBBLESUP}:28"


def test_labelme() -> None:
    drawing = read_labelme(LABELME)
    assert drawing.name == "garden" and drawing.size == (40, 30)
    assert [(shape.kind, shape.tag) for shape in drawing.shapes] == [
        ("line", "background"),
        ("line", "bird"),
        ("points", "bird"),
        ("polygon", "cat"),
    ]
    assert drawing.shapes[1].points.tolist() == [[5, 6], [12, 9], [14, 15]]
    assert drawing.shapes[1].where == f"{LABELME}:17"


def test_cvat_holds_many_images_and_paints_in_z_order() -> None:
    garden, shed = read_cvat(CVAT)
    assert (garden.name, garden.size, shed.name, shed.size) == (
        "garden",
        (40, 30),
        "shed",
        (20, 10),
    )
    assert [(shape.kind, shape.tag) for shape in garden.shapes] == [
        ("line", "background"),
        ("points", "bird"),
        ("line", "bird"),
    ]
    assert garden.shapes[0].points.tolist() == [[2, 12], [37.2, 12]]
    assert [shape.kind for shape in shed.shapes] == ["polygon"]


def test_the_format_is_found_out() -> None:
    found = [[drawing.name for drawing in read_drawings(p)] for p in (SCRIBBLESUP, LABELME, CVAT)]
    assert found == [["2007_000032"], ["garden"], ["garden", "shed"]]


@pytest.mark.parametrize(
    ("original", "old", "new", "message"),
    [
        (SCRIBBLESUP, "<X>21</X>", "<X>far</X>", "20: expected <X> to be a number, got 'far'"),
        (SCRIBBLESUP, "<X>21</X>", "<X>nan</X>", "20: expected <X> to be a number, got 'nan'"),
        (SCRIBBLESUP, "<Y>6</Y>", "", "15: expected <Y> in <point>, found none"),
        (SCRIBBLESUP, "<tag>plane</tag>", "", "13: expected <tag> in <polygon>, found none"),
        (SCRIBBLESUP, "</tag>", "", "27: expected well-formed XML (mismatched tag)"),
        (
            SCRIBBLESUP,
            "<width>40<",
            "<width>0<",
            "7: expected a width and height of whole pixels, got 0 x 30",
        ),
        (
            SCRIBBLESUP,
            "<width>40<",
            "<width>1e9<",
            "7: expected at most 178956970 pixels, got 1000",
        ),
        (
            SCRIBBLESUP,
            "\t\t<point>\n\t\t\t<X>33</X>\n\t\t\t<Y>4</Y>\n\t\t</point>\n",
            "",
            "39: expected <point> in <polygon>, found none",
        ),
        (LABELME, "[2.0, 27.5],", "[2.0, 27.5", "9: expected JSON (Expecting ',' delimiter)"),
        (LABELME, '"linestrip"', '"circle"', "17: expected shape_type line, linestrip, point, "),
        (LABELME, '"label": "bird",', "", "17: expected label to be text, got nothing"),
        (LABELME, "[2.0, 27.5]", "[2.0]", "5: expected points as [[x, y], ...], got [[2.0], "),
        (LABELME, "2.0, 27.5", "NaN, 27.5", "5: expected points as [[x, y], ...], got [[nan"),
        (LABELME, '"imageWidth": 40', '"imageWidth": null', "1: expected imageWidth to be a numb"),
        (LABELME, '"shapes": [', '"forms": [', "1: expected shapes to be a list, got nothing"),
        (CVAT, "5.00,6.00;", "5.00;", "27: expected points as x,y;x,y;..., got '5.00;12.00,9.00;"),
        (CVAT, "5.00,6.00;", "5.00,here;", "27: expected a coordinate to be a number, got 'here'"),
        (CVAT, '<polyline label="bird"', "<polyline", "27: expected the attribute label in <polyl"),
        (
            CVAT,
            "<tag ",
            '<box label="bird" xtl="1" ytl="1" xbr="2" ybr="2"/><tag ',
            "25: expected <polyline>, <polygon>, <points> or <mask>, got <box>",
        ),
        (CVAT, "<annotations>", "<notes>", "38: expected well-formed XML (mismatched tag)"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(
    spoilt: Callable[[Path, str, str], Path], original: Path, old: str, new: str, message: str
) -> None:
    assert error_of(spoilt(original, old, new)).startswith(message)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.xml"
    path.write_text("<html>\n</html>")
    assert error_of(path).startswith("1: expected <annotation> (ScribbleSup) or <annotations> (CV")
    path.write_text("")
    assert "expected well-formed XML (no element found)" in error_of(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "expected well-formed XML" in error_of(path)
    path = tmp_path / "list.json"
    path.write_text("[1, 2]")
    assert error_of(path) == " task 0: expected a JSON object, got int"
    path.write_text("17")
    assert error_of(path) == "1: expected a JSON object, got int"
    path.write_text('{"a": ' + "[" * 100_000)
    assert "cannot be read" in error_of(path) or "expected JSON" in error_of(path)
    assert "expected a file .xml or .json" in error_of(tmp_path / "notes.txt")
    assert "cannot be read" in error_of(tmp_path / "nosuch.xml")
    assert "cannot be read" in error_of(tmp_path / "nosuch.json")


@pytest.mark.parametrize(
    "declaration",
    [
        '<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">',
        '<!ENTITY a SYSTEM "file:///etc/passwd">',
        '<!ENTITY % a SYSTEM "http://127.0.0.1/nothing">',
    ],
    ids=["nested", "external", "parameter"],
)
def test_entities_are_refused(tmp_path: Path, declaration: str) -> None:
    path = tmp_path / "bomb.xml"
    path.write_text(f"<!DOCTYPE annotation [\n{declaration}\n]>\n<annotation>&a;</annotation>")
    assert error_of(path).startswith("2: declares the entity 'a'")


def test_undeclared_entities_are_no_xml(tmp_path: Path) -> None:
    path = tmp_path / "entity.xml"
    path.write_text("<annotation>\n&nbsp;</annotation>")
    assert error_of(path) == "2: expected well-formed XML (undefined entity)"


def test_deep_xml_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep.xml"
    path.write_text("<a>" * 50_000 + "</a>" * 50_000)
    assert read_xml(path).tag == "a"
