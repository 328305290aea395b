"""Convert a checkpoint that the authors published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import add_overwrite, make_parser


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("import-checkpoint", "IN OUT [--overwrite]", __doc__)
    parser.add_argument("checkpoint", type=Path, metavar="IN", help="The authors' file.")
    parser.add_argument("output", type=Path, metavar="OUT", help="Checkpoint to write.")
    add_overwrite(parser, "OUT if it exists")
    options = parser.parse(argv)

    from blpseg.authors import import_checkpoint

    classes = import_checkpoint(options.checkpoint, options.output, overwrite=options.overwrite)
    print(f"{options.output} written; {len(classes)} classes: {', '.join(classes)}.")
    return 0
