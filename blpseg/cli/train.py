"""Train a model on a folder of images and scribbles."""

from __future__ import annotations

from collections.abc import Sequence

from blpseg.cli.arguments import RUN_DESCRIPTION, make_parser, parse_run, print_table


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser(
        "train", "[CONFIG] [FOLDER] [--section.key=value ...]", f"{__doc__}\n\n{RUN_DESCRIPTION}"
    )
    from blpseg.config import TrainConfig

    parser.add_class_arguments(TrainConfig)
    config, _ = parse_run(parser, argv)

    from accelerate import PartialState

    from blpseg.evaluation.tables import scores_table
    from blpseg.training import train
    from blpseg.training.distributed import leave_group

    try:
        result = train(config)
    finally:
        leave_group()
    if not PartialState().is_main_process:
        return 0
    if result.scores is not None:
        print_table(scores_table(result.scores))
    checkpoints = " and ".join(path.name for path in (result.last, result.best) if path is not None)
    print(f"Trained in {result.seconds:.0f} s; checkpoints in {result.output}: {checkpoints}.")
    return 0
