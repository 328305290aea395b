"""Convert files of annotation programs, and their label images, to label maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from blpseg.data.formats.label_image import LABEL_IMAGE_SUFFIXES, LabelImages, ValuesPreset
from blpseg.data.formats.reader import SUFFIXES, read_drawings
from blpseg.data.images import UNREADABLE, image_shape, images_in
from blpseg.data.layouts import read_classes
from blpseg.data.layouts.context import CONTEXT_CLASSES
from blpseg.data.layouts.scribblecoco import COCO_CLASSES
from blpseg.data.layouts.voc import VOC_CLASSES
from blpseg.data.shapes import Drawing, ScribbleThinning, draw_drawing, label_of
from blpseg.errors import UserError, raise_problems
from blpseg.pictures import save_label_map
from blpseg.scribbles.outputs import prepare_output

NAMED_CLASSES = {"voc": VOC_CLASSES, "context": CONTEXT_CLASSES, "coco": COCO_CLASSES}

_FOLDER_SUFFIX = ".zarr"  # one array in many files


def convert(
    inputs: Sequence[Path],
    classes: Sequence[str],
    output: Path,
    *,
    width: int = 1,
    values: ValuesPreset = "from-zero",
    dataset: str | None = None,
    images: Path | None = None,
    thinning: ScribbleThinning | None = None,
    overwrite: bool = False,
) -> list[Path]:
    """Draw the shapes in files as label maps OUTPUT/NAME.png of mode P; NAME is the image's.

    If any file is wrong, nothing is written.

    Args:
        inputs: XML files (ScribbleSup, CVAT), JSON files (LabelMe, Label Studio, COCO), label
            images (PNG, TIFF, HDF5, zarr), and folders of them.
        classes: Class names in the order of their labels.
        output: Folder for the label maps: 0..K-1 where something is drawn, 255 elsewhere.
        width: Width of lines and points, in pixels.
        values: What the values of label images mean.
        dataset: Path of the array in HDF5 and zarr files; None: the only one.
        images: Folder of the images; every drawing must have the name and the size of one. None
            checks nothing.
        thinning: What to leave out, for studies; None draws everything.
        overwrite: Replace existing label maps.

    Returns:
        The files written.

    Raises:
        UserError: A file cannot be read (the message names the line), a tag is no class, a drawing
            has no image or another size, two have the same name, or a label map exists.
    """
    label_images = LabelImages(classes, values, dataset)
    drawings: list[Drawing] = []
    problems = []
    for path in find_inputs(inputs):
        try:
            found = read_drawings(path, label_images)
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
    if images is not None:
        problems += _mismatches(drawings, images)
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

    Folders of XML or JSON files often hold the images too. So label images are taken from folders
    without such files only.

    Raises:
        UserError: An input does not exist, or a folder holds no such file.
    """
    found = []
    for path in inputs:
        if path.is_file() or (path.is_dir() and path.suffix.lower() == _FOLDER_SUFFIX):
            found.append(path)
        elif path.is_dir():
            for suffixes in (SUFFIXES, LABEL_IMAGE_SUFFIXES):
                inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes)
                if inside:
                    break
            else:
                expected = " or ".join(SUFFIXES + LABEL_IMAGE_SUFFIXES)
                raise UserError(f"{path}: expected files {expected}, found none")
            found += inside
        else:
            raise UserError(f"{path}: expected a file or folder, but there is none")
    return found


def _mismatches(drawings: Sequence[Drawing], images: Path) -> list[str]:
    if not images.is_dir():
        raise UserError(f"{images}: expected a folder of images, but there is none")
    paths = {path.stem: path for path in images_in(images)}
    problems = []
    for drawing in drawings:
        if drawing.name not in paths:
            problems.append(f"{drawing.name}: no image of this name in {images}")
            continue
        try:
            its_height, its_width, _ = image_shape(paths[drawing.name])
        except UNREADABLE as error:
            problems.append(f"{paths[drawing.name]}: cannot be read ({error})")
            continue
        width, height = drawing.size
        if (width, height) != (its_width, its_height):
            problems.append(
                f"{drawing.name}: is drawn on {width} x {height} pixels, but "
                f"{paths[drawing.name]} is {its_width} x {its_height}"
            )
    return problems


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
