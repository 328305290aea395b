"""Turn CVAT, LabelMe, Label Studio, COCO, ScribbleSup, ilastik or napari files into label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import make_parser


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser(
        "scribbles convert",
        "INPUT [INPUT ...] --classes NAMES --output FOLDER [--width W]",
        __doc__,
    )
    from blpseg.data.formats.label_image import ValuesPreset
    from blpseg.data.shapes import ScribbleThinning

    parser.add_argument("inputs", nargs="+", type=Path, help="Files, or folders of them.")
    parser.add_argument(
        "--classes", required=True, help="File of class names, one per line; or voc, context, coco."
    )
    parser.add_argument("--output", type=Path, required=True, help="Folder for the label maps.")
    parser.add_argument(
        "--width",
        type=int,
        default=1,
        help="Width of lines in pixels; the authors use 1, other work 3.",
    )
    parser.add_argument(
        "--values",
        type=ValuesPreset,
        default="from-zero",
        help="Label images: from-zero (255 is unlabeled) or from-one (0 is: ilastik, napari).",
    )
    parser.add_argument(
        "--dataset", type=str | None, help="Label images: path of the array in HDF5 or zarr files."
    )
    parser.add_argument(
        "--images", type=Path | None, help="Folder of the images: names and sizes are compared."
    )
    parser.add_class_arguments(ScribbleThinning)
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace earlier label maps.")
    options = parser.parse(argv)

    from blpseg.scribbles.convert import convert, find_classes

    written = convert(
        options.inputs,
        find_classes(options.classes),
        options.output,
        width=options.width,
        values=options["values"],  # `values` is a method too
        dataset=options.dataset,
        images=options.images,
        thinning=ScribbleThinning(options.shrink, options.drop, options.seed),
        overwrite=options.overwrite,
    )
    print(f"Label maps written to {options.output}: {len(written)} (255 is unlabeled).")
    return 0
