"""Check a data set before training, and measure its scribbles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import make_parser


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code: 1 if some files cannot be used."""
    parser = make_parser(
        "scribbles inspect", "--data.root FOLDER [--output FOLDER] [--key=value ...]", __doc__
    )
    from blpseg.config import DataConfig

    parser.add_class_arguments(DataConfig, "data")
    parser.add_argument(
        "--split", type=str | None, help="Part of the data set; null: the training part."
    )
    parser.add_argument(
        "--measure",
        type=int,
        default=500,
        help="Number of images whose scribbles are compared with masks.",
    )
    parser.add_argument(
        "--output", type=Path | None, help="Folder for plots and a JSON file; null: write none."
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace earlier plots.")
    options = parser.parse(argv)

    from blpseg.scribbles.inspection import inspect
    from blpseg.scribbles.tables import print_inspection

    inspection = inspect(
        options.data,
        split=options.split,
        measure=options.measure,
        output=options.output,
        overwrite=options.overwrite,
    )
    print_inspection(inspection)
    if options.output is not None:
        print(f"Plots and figures written to {options.output}.")
    return 1 if inspection.problems else 0
