"""Train a model on a folder of images and scribbles."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

from blpseg.cli.arguments import make_parser, print_table
from blpseg.errors import UserError

STOPPED = 128 + 15  # as shells report SIGTERM


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("train", "[CONFIG.yaml] [--any.key=value ...]", __doc__)
    from blpseg.config import TrainConfig

    parser.add_argument("--config", action="config", help="The same as CONFIG.yaml.")
    parser.add_class_arguments(TrainConfig)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", str(_config_file(argv[0])), *argv[1:]]
    options = parser.instantiate(parser.parse_args(argv))
    config = TrainConfig(**{part.name: options[part.name] for part in fields(TrainConfig)})

    from accelerate import PartialState

    from blpseg.evaluation import scores_table
    from blpseg.interruption import TrainingStopped
    from blpseg.training import train

    try:
        result = train(config)
    except TrainingStopped as stopped:
        print(f"blpseg: {stopped}", file=sys.stderr)
        return STOPPED
    if not PartialState().is_main_process:
        return 0
    if result.scores is not None:
        print_table(scores_table(result.scores))
    kept = " and ".join(path.name for path in (result.last, result.best) if path is not None)
    print(f"Trained in {result.seconds:.0f} s; {result.output} holds {kept}.")
    return 0


def _config_file(name: str) -> Path:
    """Find a configuration: a path, or the name of one that comes with the package."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = {
        file.name.removesuffix(".yaml"): file
        for file in files("blpseg").joinpath("configs").iterdir()
    }
    if name in shipped:
        return Path(str(shipped[name]))
    raise UserError(
        f"{name}: expected a YAML file or the name of a configuration that comes with blpseg "
        f"({', '.join(shipped)})"
    )
