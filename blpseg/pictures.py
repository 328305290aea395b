"""Draw label maps, scribbles and probabilities; all pictures are [H, W, 3] uint8, RGB."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import imgviz
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import distance_transform_edt

from blpseg.data.folder import Sample

COLORS: np.ndarray = imgviz.label_colormap()  # [256, 3] uint8; 0 is black, 255 is ivory

THUMBNAIL = 220  # longer side of a picture in a table, in pixels

_WHITE = (255, 255, 255)
_DARK = (32, 32, 32)
_TEXT_SIZE = 13
_MARGIN = 6
_ROWS_AT_ONCE = 256  # painted at a time: intermediate results are many times the picture


def save_picture(path: Path, picture: np.ndarray) -> None:
    """Write a picture [H, W, 3] uint8; the suffix selects the format."""
    Image.fromarray(picture).save(path)


def save_label_map(path: Path, labels: np.ndarray) -> None:
    """Write a label map [H, W] uint8 as a PNG of mode P; its pixel values are the labels."""
    imgviz.io.lblsave(path, labels)


def color_labels(labels: np.ndarray) -> np.ndarray:
    """Paint a label map [H, W] uint8 in the classes' colors."""
    return COLORS[labels]


def overlay(image: np.ndarray, labels: np.ndarray, alpha: float = 0.55) -> np.ndarray:
    """Paint a label map over its image; class 0, the background, is transparent.

    Args:
        image: [H, W, 3] uint8.
        labels: [H, W] uint8.
        alpha: Opacity of the colors, 0 to 1.

    Returns:
        [H, W, 3] uint8.
    """
    opacity = np.full(256, alpha)
    opacity[0] = 0

    def paint(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return imgviz.label2rgb(labels, image=image, alpha=opacity.tolist())

    return _paint_by_rows(paint, image, labels)


def draw_scribbles(image: np.ndarray, target: np.ndarray, num_classes: int) -> np.ndarray:
    """Draw thickened scribbles with a white outline over their dimmed image.

    Args:
        image: [H, W, 3] uint8.
        target: [H, W] uint8, scribbled if below `num_classes`.
        num_classes: K.

    Returns:
        [H, W, 3] uint8.
    """
    picture = image // 2 + 64
    unlabeled = target >= num_classes
    if unlabeled.all():
        return picture
    distance, (rows, columns) = distance_transform_edt(unlabeled, return_indices=True)
    thickness = max(target.shape) / 250
    picture[distance <= 2 * thickness] = _WHITE
    line = distance <= thickness
    picture[line] = COLORS[target[rows, columns]][line]
    return picture


def draw_box(picture: np.ndarray, square: tuple[int, int, int]) -> np.ndarray:
    """Draw a white square with a dark outline around a part of a picture.

    Args:
        picture: [H, W, 3] uint8.
        square: x and y of the left upper corner, and the side, in pixels.

    Returns:
        [H, W, 3] uint8.
    """
    x, y, side = square
    line = max(1, round(max(picture.shape) / 200))
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    draw.rectangle((x - line, y - line, x + side + line, y + side + line), None, _DARK, 3 * line)
    draw.rectangle((x, y, x + side, y + side), None, _WHITE, line)
    return np.asarray(image)


def heat_map(probability: np.ndarray) -> np.ndarray:
    """Paint probabilities [H, W], from 0 (black) to 1 (pale yellow)."""

    def paint(probability: np.ndarray) -> np.ndarray:
        return matplotlib.colormaps["magma"](np.clip(probability, 0, 1), bytes=True)[..., :3]

    return _paint_by_rows(paint, probability)


def thumbnail(picture: np.ndarray, side: int = THUMBNAIL) -> np.ndarray:
    """Resize the longer side to `side`: nearest pixel to enlarge, mean of pixels to shrink."""
    height, width = picture.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize(size, method))


def contact_sheet(
    columns: Mapping[str, Sequence[np.ndarray]],
    *,
    cell: int = THUMBNAIL,
    classes: Sequence[str] = (),
) -> np.ndarray:
    """Arrange pictures in a table, one column per title, with a legend of the classes below.

    Args:
        columns: Title to pictures, one per row; their sizes may differ.
        cell: Longer side of each picture in the table, in pixels.
        classes: Class names for the legend; no names, no legend.

    Returns:
        [H, W, 3] uint8.
    """
    counts = {title: len(pictures) for title, pictures in columns.items()}
    if not columns or len(set(counts.values())) > 1 or 0 in counts.values():
        raise ValueError(
            f"columns: expected an equal number of pictures, at least 1, in each; got {counts}"
        )
    rows = zip(*columns.values(), strict=True)
    scaled = [thumbnail(picture, cell) for row in rows for picture in row]
    width = max(picture.shape[1] for picture in scaled)
    body = imgviz.tile(
        scaled,
        col=len(columns),
        cval=_WHITE,
        border=_WHITE,
        border_width=_MARGIN,
    )
    titles = [
        (column * (width + _MARGIN) + width // 2, title) for column, title in enumerate(columns)
    ]
    parts = [_title_bar(body.shape[1], titles), body]
    if classes:
        parts.append(_legend(body.shape[1], classes))
    sheet = np.concatenate(parts)
    return np.pad(sheet, ((_MARGIN, _MARGIN), (_MARGIN, _MARGIN), (0, 0)), constant_values=255)


def comparison_sheet(
    samples: Sequence[Sample],
    predictions: Mapping[str, Sequence[np.ndarray]],
    annotation: Sequence[np.ndarray],
    classes: Sequence[str],
    *,
    cell: int = THUMBNAIL,
) -> np.ndarray:
    """Arrange images, scribbles, annotation probabilities, predictions and masks in a table.

    Args:
        samples: The images with their labels, one per row; masks are shown if all have one.
        predictions: Title to label maps [H, W] uint8, one per row.
        annotation: Annotation probabilities [H, W], one per row.
        classes: The K class names.
        cell: Longer side of each picture in the table, in pixels.

    Returns:
        [H, W, 3] uint8.
    """
    images = [np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy()) for sample in samples]
    columns = {
        "image": images,
        "scribbles": [
            draw_scribbles(image, sample.target.numpy(), len(classes))
            for image, sample in zip(images, samples, strict=True)
        ],
        "annotation probability": [heat_map(probability) for probability in annotation],
    }
    columns |= {title: [color_labels(one) for one in maps] for title, maps in predictions.items()}
    if all(sample.mask is not None for sample in samples):
        columns["truth"] = [color_labels(sample.mask.numpy()) for sample in samples]
    return contact_sheet(columns, cell=cell, classes=classes)


def _paint_by_rows(paint: Callable[..., np.ndarray], *maps: np.ndarray) -> np.ndarray:
    """Paint maps [H, W, ...] a few rows at a time; return [H, W, 3] uint8."""
    picture = np.empty((*maps[0].shape[:2], 3), np.uint8)
    for top in range(0, len(picture), _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        picture[rows] = paint(*(part[rows] for part in maps))
    return picture


def _title_bar(width: int, titles: list[tuple[int, str]]) -> np.ndarray:
    bar = Image.new("RGB", (width, _TEXT_SIZE + 2 * _MARGIN), _WHITE)
    draw = ImageDraw.Draw(bar)
    for center, title in titles:
        draw.text((center, _MARGIN), title, _DARK, _font(), anchor="ma")
    return np.asarray(bar)


def _legend(width: int, classes: Sequence[str]) -> np.ndarray:
    """Draw a color swatch and the name of each class, wrapped into lines."""
    font, line = _font(), _TEXT_SIZE + 2 * _MARGIN
    places, x, y = [], 0, _MARGIN
    for name in classes:
        needed = int(font.getlength(name)) + _TEXT_SIZE + 4 * _MARGIN
        if x and x + needed > width:
            x, y = 0, y + line
        places.append((x, y))
        x += needed
    legend = Image.new("RGB", (width, y + line), _WHITE)
    draw = ImageDraw.Draw(legend)
    for label, (name, (x, y)) in enumerate(zip(classes, places, strict=True)):
        swatch = (x, y, x + _TEXT_SIZE, y + _TEXT_SIZE)
        draw.rectangle(swatch, fill=tuple(COLORS[label].tolist()), outline=_DARK)
        draw.text((x + _TEXT_SIZE + _MARGIN, y), name, _DARK, font)
    return np.asarray(legend)


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_TEXT_SIZE)
