"""Train on built-in scenes and photographs with and without BLPSeg, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import make_parser


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("demo", "[--quick] [--seeds LIST] [--output DIR]", __doc__)
    parser.add_argument(
        "--quick", type=bool, default=False, help="Train a few iterations, as a check only."
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("blpseg-demo"),
        help="Folder for the scores and pictures.",
    )
    parser.add_argument(
        "--seeds",
        type=list[int],
        default=[0],
        help="Seeds of the runs on the scenes; several give means and standard deviations.",
    )
    options = parser.parse(argv)

    from blpseg.demo import demo

    demo(quick=options.quick, output=options.output, seeds=options.seeds)
    return 0
