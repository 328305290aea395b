"""Score a trained model on a folder with masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blpseg.cli.arguments import (
    add_data_arguments,
    add_model_use_arguments,
    add_overwrite,
    crf_of,
    data_changes,
    make_parser,
    print_table,
    views_of,
)


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser(
        "evaluate", "CHECKPOINT [--data.root DIR] [--split NAME] [--key=value ...]", __doc__
    )
    parser.add_argument("checkpoint", type=Path, help="File that `blpseg train` wrote.")
    add_data_arguments(parser)
    parser.add_argument(
        "--split",
        type=str | None,
        help="Part to score on, e.g. a list splits/NAME.txt; null: val if it exists, else all.",
    )
    add_model_use_arguments(parser)
    parser.add_argument(
        "--boundary_ratio",
        type=float,
        default=0.02,
        help="Width of boundary IoU's band, as a share of the image's diagonal.",
    )
    parser.add_argument(
        "--output",
        type=Path | None,
        help="JSON file to write; the page gets its name with .html. null: next to CHECKPOINT.",
    )
    add_overwrite(parser, "both files if they exist")
    options = parser.parse(argv)

    from blpseg.evaluation import evaluate
    from blpseg.evaluation.outputs import default_output, page_of
    from blpseg.evaluation.tables import scores_table

    evaluation = evaluate(
        options.checkpoint,
        options.split,
        data=data_changes(options),
        views=views_of(options),
        query_stride=options.query_stride,
        crf=crf_of(options),
        boundary_ratio=options.boundary_ratio,
        output=options.output,
        overwrite=options.overwrite,
        device=options.device,
    )
    print_table(scores_table(evaluation.scores))
    output = options.output or default_output(options.checkpoint)
    print(f"Scores written to {output}, the page to {page_of(output)}.")
    return 0
