"""Simulate scribbles on masks, as people draw them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import make_parser
from blpseg.errors import UserError


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("scribbles simulate", "MASKS --output FOLDER [--key=value ...]", __doc__)
    from blpseg.data.scribble_simulator import ScribbleOptions

    parser.add_argument("masks", type=Path, help="Folder of PNG label maps.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for the scribbles.")
    parser.add_class_arguments(ScribbleOptions)
    parser.add_argument("--seed", type=int, default=0, help="Seed of the scribbles.")
    parser.add_argument("--void", type=int, default=255, help="Value of void pixels in the masks.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace earlier scribbles.")
    options = parser.parse(argv)

    from dataclasses import fields

    from blpseg.scribbles.simulate import simulate

    try:
        dials = ScribbleOptions(**{f.name: options[f.name] for f in fields(ScribbleOptions)})
    except ValueError as error:
        raise UserError(str(error)) from error
    written = simulate(
        options.masks,
        options.output,
        dials,
        seed=options.seed,
        void=options.void,
        overwrite=options.overwrite,
    )
    print(f"Label maps written to {options.output}: {len(written)} (255 is unlabeled).")
    return 0
