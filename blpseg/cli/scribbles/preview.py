"""Draw scribbles in color over their images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import make_parser


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser(
        "scribbles preview", "--data.root FOLDER --output FOLDER [--key=value ...]", __doc__
    )
    from blpseg.config import DataConfig

    parser.add_class_arguments(DataConfig, "data")
    parser.add_argument("--split", type=str | None, help="Part of the data set; null: all of it.")
    parser.add_argument("--count", type=int | None, help="Number of images to draw; null: all.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for the pictures.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace earlier pictures.")
    options = parser.parse(argv)

    from blpseg.scribbles.preview import preview

    written = preview(
        options.data,
        options.output,
        split=options.split,
        count=options.count,
        overwrite=options.overwrite,
    )
    print(f"Pictures written to {options.output}: {len(written)}.")
    return 0
