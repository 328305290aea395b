"""Read drawings from a file of any known format."""

from __future__ import annotations

from pathlib import Path

from blpseg.data.formats import cvat, scribblesup
from blpseg.data.formats.coco import parse_coco
from blpseg.data.formats.json_fields import read_json
from blpseg.data.formats.label_image import LABEL_IMAGE_SUFFIXES, LabelImages
from blpseg.data.formats.label_studio import parse_label_studio
from blpseg.data.formats.labelme import read_labelme
from blpseg.data.formats.xml_elements import read_xml
from blpseg.data.shapes import Drawing
from blpseg.errors import UserError

SUFFIXES = (".xml", ".json")


def read_drawings(path: Path, label_images: LabelImages | None = None) -> list[Drawing]:
    """Read a file of ScribbleSup, CVAT, LabelMe, Label Studio or COCO, or a label image.

    The suffix and the content decide which.

    Args:
        path: The file; a folder if it is zarr.
        label_images: How label images are read; None refuses them.

    Raises:
        UserError: The file is none of them, or cannot be read; the message names the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return _read_json_drawings(path)
    if label_images is not None and suffix in LABEL_IMAGE_SUFFIXES:
        return [label_images.read(path)]
    if suffix != ".xml":
        expected = SUFFIXES if label_images is None else SUFFIXES + LABEL_IMAGE_SUFFIXES
        raise UserError(f"{path}: expected a file {' or '.join(expected)}")
    top = read_xml(path)
    if top.tag == cvat.ROOT:
        return cvat.parse_cvat(top)
    if top.tag == scribblesup.ROOT:
        return [scribblesup.parse_scribblesup(top)]
    raise UserError(
        f"{top.where}: expected <{scribblesup.ROOT}> (ScribbleSup) or <{cvat.ROOT}> (CVAT for "
        f"images 1.1), got <{top.tag}>"
    )


def _read_json_drawings(path: Path) -> list[Drawing]:
    content = read_json(path)
    if isinstance(content, list):
        return parse_label_studio(content, path)
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return parse_coco(content, path)
    return [read_labelme(path)]
