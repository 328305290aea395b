"""Read drawings from a file of any known format."""

from __future__ import annotations

from pathlib import Path

from blpseg.data.formats import cvat, scribblesup
from blpseg.data.formats.labelme import read_labelme
from blpseg.data.formats.xml_elements import read_xml
from blpseg.data.shapes import Drawing
from blpseg.errors import UserError

SUFFIXES = (".xml", ".json")


def read_drawings(path: Path) -> list[Drawing]:
    """Read a file of ScribbleSup, CVAT or LabelMe; its content decides which.

    Raises:
        UserError: The file is none of them, or cannot be read; the message names the line.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        return [read_labelme(path)]
    if suffix != ".xml":
        raise UserError(f"{path}: expected a file {' or '.join(SUFFIXES)}")
    top = read_xml(path)
    if top.tag == cvat.ROOT:
        return cvat.parse_cvat(top)
    if top.tag == scribblesup.ROOT:
        return [scribblesup.parse_scribblesup(top)]
    raise UserError(
        f"{top.where}: expected <{scribblesup.ROOT}> (ScribbleSup) or <{cvat.ROOT}> (CVAT for "
        f"images 1.1), got <{top.tag}>"
    )
