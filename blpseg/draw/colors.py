"""The classes' colors on the page and in the palette of the scribble files."""

from __future__ import annotations

import colorsys

UNLABELED_COLOR = "#e0e0c0"

# Bright enough to be seen on a photo, and apart for people who see red and green alike. Class 0,
# usually the background, is a calm one.
_FIRST = (
    "#5b8def",
    "#ff7f0e",
    "#18b892",
    "#e8417f",
    "#f2c30f",
    "#9b5de5",
    "#4cc9f0",
    "#8ac926",
    "#d2691e",
    "#f48fb1",
    "#00796b",
    "#c0ca33",
)
_GOLDEN_ANGLE = 0.38196601125  # of the circle: neighbors in the list get distant hues


def class_color(label: int) -> str:
    """Return the color of a class as "#rrggbb"."""
    if label < len(_FIRST):
        return _FIRST[label]
    hue = label * _GOLDEN_ANGLE % 1
    parts = colorsys.hls_to_rgb(hue, 0.45 + 0.2 * (label % 2), 0.75)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def png_palette() -> list[int]:
    """Return the 256 colors of a scribble file, as Pillow's putpalette takes them."""
    colors = [class_color(label) for label in range(255)] + [UNLABELED_COLOR]
    return [byte for color in colors for byte in bytes.fromhex(color[1:])]
