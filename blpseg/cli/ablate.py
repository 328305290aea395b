"""Measure what each part of the method is worth, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from blpseg.cli.arguments import config_file, make_parser, print_table

_CHOSEN = {"seed", "overwrite", "resume"}  # by the ablation, run by run


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("ablate", "[CONFIG.yaml] [--seeds=[0,1,2]] [--any.key=value ...]", __doc__)
    from blpseg.config import TrainConfig

    parser.add_argument("--config", action="config", help="The same as CONFIG.yaml.")
    parser.add_argument(
        "--seeds", type=list[int], default=[0, 1, 2], help="A training of each variant for each."
    )
    parser.add_class_arguments(TrainConfig, skip=_CHOSEN)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", str(config_file(argv[0])), *argv[1:]]
    options = parser.instantiate(parser.parse_args(argv))
    names = [part.name for part in fields(TrainConfig) if part.name not in _CHOSEN]
    config = TrainConfig(**{name: options[name] for name in names})

    from blpseg.ablation import ablate, ablation_table
    from blpseg.interruption import TrainingStopped

    try:
        ablation = ablate(config, options.seeds)
    except TrainingStopped as stopped:
        raise TrainingStopped("stopped; the same command goes on from here") from stopped
    print_table(ablation_table(ablation))
    print(f"Written to {config.output}: ablation.json, ablation.png and the runs.")
    return 0
