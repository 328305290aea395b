"""Write the built-in data set: procedural scenes with scribbles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import make_parser
from blpseg.errors import UserError


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser(
        "scenes", "FOLDER [--count N] [--val_count M] [--size S] [--seed K]", __doc__
    )
    parser.add_argument("folder", type=Path, help="Folder to write; new or empty.")
    parser.add_argument("--count", type=int, default=200, help="Scenes for training.")
    parser.add_argument("--val_count", type=int, default=40, help="Scenes for validation.")
    parser.add_argument("--size", type=int, default=128, help="Side of the scenes, in pixels.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the scenes and the scribbles.")
    options = parser.parse(argv)

    from blpseg.data.scenes import write_scenes

    try:
        write_scenes(
            options.folder, options.count, options.seed, options.size, val_count=options.val_count
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"{options.count + options.val_count} scenes written to {options.folder}.")
    return 0
