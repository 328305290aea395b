"""Export a trained model to ONNX or torch.export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import add_overwrite, add_query_stride, make_parser


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("export", "CHECKPOINT OUTPUT.onnx|OUTPUT.pt2 [--size=[H,W]]", __doc__)
    parser.add_argument("checkpoint", type=Path, help="File that `blpseg train` wrote.")
    parser.add_argument("output", type=Path, help="File to write; .onnx or .pt2.")
    parser.add_argument(
        "--size",
        type=tuple[int, int],
        default=(512, 512),
        help="Height and width of the images that the exported model takes.",
    )
    add_query_stride(parser)
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="Largest allowed difference of a logit, relative to the largest logit.",
    )
    add_overwrite(parser, "the file if it exists")
    options = parser.parse(argv)

    from blpseg.export import export

    exported = export(
        options.checkpoint,
        options.output,
        size=options.size,
        query_stride=options.query_stride,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    print(
        f"{exported.path}: logits differ from the model's by up to {exported.error:.2g} "
        f"(largest logit {exported.largest:.3g}), labels at {exported.differing} of "
        f"{exported.pixels} pixels."
    )
    return 0
