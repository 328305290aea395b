"""Write a trained model for other programs: ONNX or torch.export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import make_parser


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("export", "CHECKPOINT OUT.onnx|OUT.pt2 [--size=[H,W]]", __doc__)
    parser.add_argument("checkpoint", type=Path, help="File that `blpseg train` wrote.")
    parser.add_argument("output", type=Path, help="File to write; .onnx or .pt2.")
    parser.add_argument(
        "--size",
        type=tuple[int, int],
        default=(512, 512),
        help="Height and width of the photos that the file takes.",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="Largest difference of a logit from the model's, relative to the largest logit.",
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace the file.")
    options = parser.parse_args(argv)

    from blpseg.export import export

    done = export(
        options.checkpoint,
        options.output,
        size=options.size,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    print(
        f"{done.path}: logits differ from the model's by up to {done.error:.2g} (the largest is "
        f"{done.largest:.3g}), labels at {done.differing} of {done.pixels} pixels."
    )
    return 0
