"""Convert files of annotation programs to label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from blpseg.data.formats.reader import SUFFIXES, read_drawings
from blpseg.data.layouts import read_classes
from blpseg.data.layouts.context import CONTEXT_CLASSES
from blpseg.data.layouts.scribblecoco import COCO_CLASSES
from blpseg.data.layouts.voc import VOC_CLASSES
from blpseg.data.shapes import Drawing, ScribbleThinning, draw_drawing, label_of
from blpseg.errors import UserError, raise_problems
from blpseg.pictures import save_label_map
from blpseg.scribbles.outputs import prepare_output

NAMED_CLASSES = {"voc": VOC_CLASSES, "context": CONTEXT_CLASSES, "coco": COCO_CLASSES}


def convert(
    inputs: Sequence[Path],
    classes: Sequence[str],
    output: Path,
    *,
    width: int = 1,
    thinning: ScribbleThinning | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Draw the shapes in files as label maps OUTPUT/NAME.png of mode P; NAME is the image's.

    If any file is wrong, nothing is written.

    Args:
        inputs: ScribbleSup or CVAT XML files, LabelMe JSON files, and folders of them.
        classes: Class names in the order of their labels.
        output: Folder for the label maps: 0..K-1 where something is drawn, 255 elsewhere.
        width: Width of lines and points, in pixels.
        thinning: What to leave out, for studies; None draws everything.
        overwrite: Replace existing label maps.

    Returns:
        The files written.

    Raises:
        UserError: A file cannot be read (the message names the line), a tag is no class, two
            drawings have the same name, or a label map exists.
    """
    drawings: list[Drawing] = []
    problems = []
    for path in find_inputs(inputs):
        try:
            found = read_drawings(path)
            for drawing in found:
                for shape in drawing.shapes:
                    label_of(shape, classes)
        except UserError as error:
            problems.append(str(error))
        else:
            drawings += found
    counts = Counter(drawing.name for drawing in drawings)
    problems += [
        f"{name}: {count} drawings of this name" for name, count in counts.items() if count > 1
    ]
    raise_problems("the inputs; nothing was written", problems)
    prepare_output(output, [f"{drawing.name}.png" for drawing in drawings], overwrite)
    written = []
    for drawing in drawings:
        labels = draw_drawing(drawing, classes, width=width, thinning=thinning)
        written.append(output / f"{drawing.name}.png")
        save_label_map(written[-1], labels)
    return written


def find_inputs(inputs: Sequence[Path]) -> list[Path]:
    """List the given files and the files in the given folders.

    Raises:
        UserError: An input does not exist, or a folder holds no such file.
    """
    found = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise UserError(f"{path}: expected files {' or '.join(SUFFIXES)}, found none")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"{path}: expected a file or folder, but there is none")
    return found


def find_classes(name: str) -> Sequence[str]:
    """Read class names from a file, or return those of a known data set.

    Raises:
        UserError: The name is neither, or the file is no list of classes.
    """
    if name in NAMED_CLASSES:
        return NAMED_CLASSES[name]
    if not Path(name).is_file():
        raise UserError(
            f"{name}: expected a file with class names, one per line, or {', '.join(NAMED_CLASSES)}"
        )
    return read_classes(Path(name))
