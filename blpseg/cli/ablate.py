"""Measure the gain of each part of the method, and of its peers, over seeds."""

from __future__ import annotations

from collections.abc import Sequence

from blpseg.cli.arguments import RUN_DESCRIPTION, make_parser, parse_run, print_table


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser(
        "ablate",
        "[CONFIG] [FOLDER] [--seeds=[0,1,2]] [--variants=[parts]] [--section.key=value ...]",
        f"{__doc__}\n\n{RUN_DESCRIPTION}",
    )
    from blpseg.config import PER_RUN, TrainConfig

    parser.add_argument(
        "--seeds", type=list[int], default=[0, 1, 2], help="Train each variant once per seed."
    )
    parser.add_argument(
        "--variants",
        type=list[str],
        default=["parts"],
        help="What to compare: parts, peers, full-supervision, all, or names such as lam+blp.",
    )
    parser.add_class_arguments(TrainConfig, skip=PER_RUN)
    config, options = parse_run(parser, argv, output_suffix="-ablation")

    from blpseg.ablation import ablate, ablation_table
    from blpseg.errors import TrainingStopped

    try:
        ablation = ablate(config, options.seeds, options.variants)
    except TrainingStopped as stopped:
        raise TrainingStopped("stopped; the same command continues the ablation") from stopped
    print_table(ablation_table(ablation))
    print(f"Written to {config.output}: ablation.json, ablation.png and the runs.")
    return 0
