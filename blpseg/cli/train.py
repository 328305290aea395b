"""Train a model on a folder of images and scribbles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from blpseg.cli.arguments import config_file, make_parser, print_table


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("train", "[CONFIG.yaml] [--any.key=value ...]", __doc__)
    from blpseg.config import TrainConfig

    parser.add_argument("--config", action="config", help="The same as CONFIG.yaml.")
    parser.add_class_arguments(TrainConfig)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", str(config_file(argv[0])), *argv[1:]]
    options = parser.instantiate(parser.parse_args(argv))
    config = TrainConfig(**{part.name: options[part.name] for part in fields(TrainConfig)})

    from accelerate import PartialState

    from blpseg.distributed import leave_group
    from blpseg.evaluation import scores_table
    from blpseg.training import train

    try:
        result = train(config)
    finally:
        leave_group()
    if not PartialState().is_main_process:
        return 0
    if result.scores is not None:
        print_table(scores_table(result.scores))
    kept = " and ".join(path.name for path in (result.last, result.best) if path is not None)
    print(f"Trained in {result.seconds:.0f} s; {result.output} holds {kept}.")
    return 0
