"""Segment images with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import (
    add_model_use_arguments,
    add_overwrite,
    crf_of,
    make_parser,
    views_of,
)


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser(
        "predict", "CHECKPOINT INPUT [INPUT ...] --output DIR [--key=value ...]", __doc__
    )
    parser.add_argument("checkpoint", type=Path, help="File that `blpseg train` wrote.")
    parser.add_argument("inputs", nargs="+", help="Image files, folders of images, patterns.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for the results.")
    parser.add_argument(
        "--pseudo_labels",
        type=bool,
        default=False,
        help="Write pseudo_labels/NAME.png too: the label where its probability reaches the "
        "threshold, 255 elsewhere. A second training reads them with --data.scribbles.",
    )
    parser.add_argument(
        "--threshold",
        type=float | None,
        help="Smallest probability of a pseudo label. Default: as in training.",
    )
    parser.add_argument(
        "--scribbles",
        type=Path | None,
        help="Folder of the images' scribbles, NAME.png with 255 for unlabeled pixels. Pseudo "
        "labels then keep them and add only classes that are in them, as self-training does.",
    )
    parser.add_argument(
        "--probabilities",
        type=bool,
        default=False,
        help="Write probabilities/NAME.npz too: the classes' probabilities [K, H, W], float16.",
    )
    add_model_use_arguments(parser)
    add_overwrite(parser, "earlier results")
    options = parser.parse(argv)

    from blpseg.prediction import predict

    failures = predict(
        options.checkpoint,
        options.inputs,
        options.output,
        views=views_of(options),
        query_stride=options.query_stride,
        crf=crf_of(options),
        pseudo_labels=options.pseudo_labels,
        threshold=options.threshold,
        scribbles=options.scribbles,
        probabilities=options.probabilities,
        overwrite=options.overwrite,
        device=options.device,
    )
    print(f"Results written to {options.output}.")
    if not failures:
        return 0
    print(f"{len(failures)} of the images failed:", file=sys.stderr)
    for failure in failures:
        print(f"  {failure.reason}", file=sys.stderr)
    return 1
