"""Pictures hold what they claim to show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.pictures import (
    COLORS,
    color_labels,
    comparison_sheet,
    contact_sheet,
    draw_scribbles,
    heat_map,
    overlay,
    save_label_map,
    save_picture,
)

GREY = np.full((40, 60, 3), 120, np.uint8)


def test_label_map_keeps_labels_and_carries_their_colors(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    save_label_map(tmp_path / "map.png", labels)
    image = Image.open(tmp_path / "map.png")
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), labels)
    assert np.array_equal(np.asarray(image.convert("RGB")), color_labels(labels))


def test_overlay_colors_classes_and_leaves_the_background() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[:, 30:] = 2
    found = overlay(GREY, labels, alpha=0.5)
    assert (found[:, :30] == 120).all()
    assert (found[:, 30:] == (COLORS[2].astype(int) + 120 + 1) // 2).all()


def test_scribbles_are_thickened_outlined_and_in_their_class_color() -> None:
    target = np.full((250, 250), 3, np.uint8)
    target[100, 50:150] = 1
    found = draw_scribbles(np.full((250, 250, 3), 120, np.uint8), target, 3)
    assert (found[99:102, 50:150] == COLORS[1]).all()
    assert (found[98, 50:150] == 255).all() and (found[102, 50:150] == 255).all()
    assert (found[:90] == 124).all()


def test_drawing_no_scribbles_only_dims() -> None:
    found = draw_scribbles(GREY, np.full((40, 60), 3, np.uint8), 3)
    assert (found == 124).all()


def test_heat_map_grows_brighter_with_probability() -> None:
    brightness = heat_map(np.linspace(0, 1, 11)[None]).astype(int).sum(-1)[0]
    assert (np.diff(brightness) > 0).all() and brightness[0] < 10 and brightness[-1] > 600


def test_contact_sheet_holds_every_picture_under_its_title() -> None:
    red, blue = np.zeros((20, 40, 3), np.uint8), np.zeros((40, 40, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    sheet = contact_sheet({"a": [red, red], "b": [blue, blue]}, cell=80)
    is_red = (sheet == (255, 0, 0)).all(-1)
    is_blue = (sheet == (0, 0, 255)).all(-1)
    assert is_red.sum() == 2 * 80 * 40 and is_blue.sum() == 2 * 80 * 80
    assert np.argwhere(is_red)[:, 1].max() < np.argwhere(is_blue)[:, 1].min()
    head = sheet[: np.argwhere(is_blue)[:, 0].min()]
    assert (head < 128).any(), "no title"


def test_contact_sheet_names_the_classes_in_their_colors() -> None:
    plain = contact_sheet({"a": [GREY]}, cell=100)
    legend = contact_sheet({"a": [GREY]}, cell=100, classes=["sky", "tree", "a rather long name"])
    assert np.array_equal(legend[: plain.shape[0] - 6], plain[:-6])
    added = legend[plain.shape[0] - 6 :]
    for label in (1, 2):
        assert (added == COLORS[label]).all(-1).sum() > 100
    assert added.shape[0] > 2 * 20, "the legend of a narrow sheet takes more than one line"


def test_contact_sheet_refuses_columns_of_different_length() -> None:
    with pytest.raises(ValueError, match=r"got {'a': 1, 'b': 2}"):
        contact_sheet({"a": [GREY], "b": [GREY, GREY]})


def test_comparison_sheet_shows_the_truth_where_it_is_known(shapes: Path, tmp_path: Path) -> None:
    widths = {}
    for labels in ("masks", "scribbles"):
        folder = ScribbleFolder(DataConfig(shapes), "val", labels=labels)
        samples = [folder[0], folder[1]]
        maps = [sample.target.numpy() for sample in samples]
        sheet = comparison_sheet(samples, {"ours": maps}, maps, folder.classes, cell=100)
        widths[labels] = sheet.shape[1]
    assert widths["masks"] - widths["scribbles"] == 106
    save_picture(tmp_path / "sheet.png", sheet)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "sheet.png")), sheet)
