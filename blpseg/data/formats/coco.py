"""COCO's JSON: images[], categories[] and annotations[] with a segmentation, many images per file.

A segmentation is a list of polygons [x, y, x, y, ...], or an RLE {size: [h, w], counts}: the
lengths of alternating runs down the columns, the first outside; as numbers, or compressed to text.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from blpseg.data.formats.json_fields import get_field, kind_of, read_json
from blpseg.data.formats.run_lengths import decode_runs, unpack_counts
from blpseg.data.formats.xml_elements import parse_size
from blpseg.data.shapes import Drawing, Shape, make_mask
from blpseg.errors import UserError

_NUMBER = (int, float)


def read_coco(path: Path) -> list[Drawing]:
    """Read a file; errors as in `parse_coco`."""
    return parse_coco(read_json(path), path)


def parse_coco(content: Any, path: Path) -> list[Drawing]:
    """Turn a file's content into drawings, in the order of its images and annotations.

    Raises:
        UserError: The content is not COCO's, or a segmentation is broken or of another size; the
            message names the annotation.
    """
    names = {}
    for number, category in enumerate(get_field(content, "categories", list, str(path))):
        where = f"{path}: category {number}"
        names[get_field(category, "id", int, where)] = get_field(category, "name", str, where)
    drawings: dict[int, Drawing] = {}
    for number, image in enumerate(get_field(content, "images", list, str(path))):
        where = f"{path}: image {number}"
        width, height = (get_field(image, side, _NUMBER, where) for side in ("width", "height"))
        file_name = get_field(image, "file_name", str, where)
        drawings[get_field(image, "id", int, where)] = Drawing(
            PurePosixPath(file_name.replace("\\", "/")).stem,
            parse_size(width, height, where),
            [],
        )
    for number, annotation in enumerate(get_field(content, "annotations", list, str(path))):
        where = f"{path}: annotation {number}"
        drawing = drawings.get(get_field(annotation, "image_id", int, where))
        tag = names.get(get_field(annotation, "category_id", int, where))
        if drawing is None or tag is None:
            kind, key = ("image", "image_id") if drawing is None else ("category", "category_id")
            raise UserError(f"{where}: there is no {kind} of the {key} {annotation[key]}")
        drawing.shapes.extend(_shapes(annotation, tag.strip(), drawing.size, where))
    return list(drawings.values())


def _shapes(annotation: Any, tag: str, size: tuple[int, int], where: str) -> list[Shape]:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list) and segmentation:
        return [Shape("polygon", tag, _corners(one, where), where) for one in segmentation]
    if not isinstance(segmentation, dict):
        raise UserError(
            f"{where}: expected segmentation to be polygons or an RLE, got "
            f"{'an empty list' if segmentation == [] else kind_of(segmentation)}"
        )
    width, height = size
    if get_field(segmentation, "size", list, where) != [height, width]:
        raise UserError(
            f"{where}: expected an RLE of size [{height}, {width}], as its image, got "
            f"{segmentation['size']}"
        )
    counts = get_field(segmentation, "counts", (list, str), where)
    if isinstance(counts, str):
        counts = unpack_counts(counts, where)
    return [make_mask(tag, decode_runs(counts, width, height, where, by_columns=True), where)]


def _corners(polygon: Any, where: str) -> np.ndarray:  # [P, 2]
    usable = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
    if not usable or not all(isinstance(n, _NUMBER) and abs(n) < float("inf") for n in polygon):
        raise UserError(
            f"{where}: expected a polygon as [x, y, x, y, x, y, ...], got {str(polygon)[:40]}"
        )
    return np.array(polygon, float).reshape(-1, 2)
