"""The command line: `blpseg COMMAND ...`. Each command imports what it needs when it runs."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

from blpseg.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace
OK, SOME_FAILED, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

_EVALUATION_DATA = (
    "root",
    "unlabeled_value",
    "first_class_value",
    "mask_void_value",
    "mask_first_class_value",
)


class _Command(NamedTuple):
    summary: str
    run: Callable[[Sequence[str]], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; None takes the process's.

    Returns:
        The exit code: 0, or 1 where some of the inputs failed, or 2 where the user has to mend
        something, which one message on stderr names.
    """
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(_overview())
        return OK
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}")
        return COMMANDS[name].run(rest)
    except (UserError, ArgumentError, OSError) as error:
        print(f"blpseg: error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("blpseg: interrupted", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as done:  # a parser's --help
        return int(done.code or OK)


def _overview() -> str:
    lines = ["usage: blpseg COMMAND ...", "", "Semantic segmentation learnt from scribbles.", ""]
    lines += [f"  {name:<10}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "blpseg COMMAND --help tells a command's options."])


def _train(argv: Sequence[str]) -> int:
    parser = _parser("train", "[CONFIG.yaml] [--any.key=value ...]")
    from blpseg.config import TrainConfig

    parser.add_argument("--config", action="config", help="The same as CONFIG.yaml.")
    parser.add_class_arguments(TrainConfig)
    if argv and not argv[0].startswith("-"):
        argv = ["--config", str(_config_file(argv[0])), *argv[1:]]
    options = parser.instantiate(parser.parse_args(argv))
    config = TrainConfig(**{part.name: options[part.name] for part in fields(TrainConfig)})

    from blpseg.evaluation import scores_table
    from blpseg.training import train

    result = train(config)
    if result.scores is not None:
        _print(scores_table(result.scores))
    kept = " and ".join(path.name for path in (result.last, result.best) if path is not None)
    print(f"Trained in {result.seconds:.0f} s; {result.output} holds {kept}.")
    return OK


def _evaluate(argv: Sequence[str]) -> int:
    parser = _parser("evaluate", "CHECKPOINT [--data.root DIR] [--split NAME] [--key=value ...]")
    parser.add_argument("checkpoint", type=Path, help="File that `blpseg train` wrote.")
    _add_data_arguments(parser)
    parser.add_argument(
        "--split",
        type=str | None,
        help="List splits/NAME.txt of the images; default: val where it exists, else every image.",
    )
    _add_model_use_arguments(parser)
    parser.add_argument(
        "--output", type=Path | None, help="JSON file; default: beside the checkpoint."
    )
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace the JSON file.")
    options = parser.parse_args(argv)

    from blpseg.evaluation import default_output, evaluate, scores_table

    evaluation = evaluate(
        options.checkpoint,
        options.split,
        data=_data_changes(options),
        scales=options.scales,
        flip=options.flip,
        output=options.output,
        overwrite=options.overwrite,
        device=options.device,
    )
    _print(scores_table(evaluation.scores))
    print(f"Scores written to {options.output or default_output(options.checkpoint)}.")
    return OK


def _predict(argv: Sequence[str]) -> int:
    parser = _parser("predict", "CHECKPOINT INPUT [INPUT ...] --output DIR [--key=value ...]")
    parser.add_argument("checkpoint", type=Path, help="File that `blpseg train` wrote.")
    parser.add_argument("inputs", nargs="+", help="Image files, folders of them, glob patterns.")
    parser.add_argument("--output", type=Path, required=True, help="Folder for the results.")
    _add_model_use_arguments(parser)
    parser.add_argument("--overwrite", type=bool, default=False, help="Replace earlier results.")
    options = parser.parse_args(argv)

    from blpseg.prediction import predict

    failures = predict(
        options.checkpoint,
        options.inputs,
        options.output,
        scales=options.scales,
        flip=options.flip,
        overwrite=options.overwrite,
        device=options.device,
    )
    print(f"Results written to {options.output}.")
    if not failures:
        return OK
    print(f"{len(failures)} of the images failed:", file=sys.stderr)
    for failure in failures:
        print(f"  {failure.reason}", file=sys.stderr)
    return SOME_FAILED


def _demo(argv: Sequence[str]) -> int:
    parser = _parser("demo", "[--quick] [--output DIR]")
    parser.add_argument("--quick", action="store_true", help="A short run, to see that it works.")
    parser.add_argument(
        "--output", type=Path, default=Path("blpseg-demo"), help="Folder for scores and pictures."
    )
    options = parser.parse_args(argv)

    from blpseg.demo import demo

    demo(quick=options.quick, output=options.output)
    return OK


def _scenes(argv: Sequence[str]) -> int:
    parser = _parser("scenes", "FOLDER [--count N] [--val-count M] [--size S] [--seed K]")
    parser.add_argument("folder", type=Path, help="Folder to write; it must not hold anything yet.")
    parser.add_argument("--count", type=int, default=200, help="Scenes for training.")
    parser.add_argument("--val-count", type=int, default=40, help="Scenes for validation.")
    parser.add_argument("--size", type=int, default=128, help="Side of the scenes, in pixels.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the scenes and scribbles.")
    options = parser.parse_args(argv)

    from blpseg.data.scenes import write_scenes

    try:
        write_scenes(
            options.folder, options.count, options.seed, options.size, val_count=options.val_count
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    print(f"{options.count + options.val_count} scenes written to {options.folder}.")
    return OK


COMMANDS = {
    "demo": _Command("Train on built-in scenes with and without BLPSeg, and compare.", _demo),
    "train": _Command("Train a model on a folder of images and scribbles.", _train),
    "evaluate": _Command("Score a trained model on a folder with masks.", _evaluate),
    "predict": _Command("Label photos with a trained model.", _predict),
    "scenes": _Command("Write the built-in data set: procedural scenes with scribbles.", _scenes),
}


def _parser(command: str, usage: str) -> ArgumentParser:
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return ArgumentParser(
        prog=f"blpseg {command}",
        usage=f"blpseg {command} {usage}",
        description=COMMANDS[command].summary,
        exit_on_error=False,
    )


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


def _add_model_use_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--scales",
        type=list[float],
        default=[1.0],
        help="Factors of the image's size to average over, e.g. [0.5,0.75,1,1.25].",
    )
    parser.add_argument("--flip", type=bool, default=False, help="Average over mirrored images.")
    parser.add_argument("--device", default="auto", help="A torch device; auto: a GPU, if any.")


def _add_data_arguments(parser: ArgumentParser) -> None:
    """Add an option per field that says where labels are and what they mean."""
    from blpseg.config import DataConfig

    types = get_type_hints(DataConfig)
    for name in _EVALUATION_DATA:
        parser.add_argument(
            f"--data.{name}", type=types[name] | None, help="Default: as in training."
        )


def _data_changes(options: Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options.data).items() if value is not None}


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)
