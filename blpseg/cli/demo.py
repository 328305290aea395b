"""Train on built-in scenes with and without BLPSeg, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import make_parser


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("demo", "[--quick] [--output DIR]", __doc__)
    parser.add_argument("--quick", action="store_true", help="A short run, to see that it works.")
    parser.add_argument(
        "--output", type=Path, default=Path("blpseg-demo"), help="Folder for scores and pictures."
    )
    options = parser.parse_args(argv)

    from blpseg.demo import demo

    demo(quick=options.quick, output=options.output)
    return 0
