"""Measure what each part of the method is worth, over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from blpseg.cli.arguments import config_file, make_parser, print_table

_CHOSEN = {"seed", "overwrite"}  # by the ablation, run by run


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

    print_table(ablation_table(ablate(config, options.seeds)))
    print(f"Written to {config.output}: ablation.json, ablation.png and the runs.")
    return 0
