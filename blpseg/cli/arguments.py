"""Arguments that several commands have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_type_hints

from blpseg.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from blpseg.cli.parser import CommandParser
    from blpseg.config import TrainConfig
    from blpseg.crf_constants import CRF
    from blpseg.views import Views

OWN_DATA_CONFIG = "small"  # the configuration of a run that names none


def make_parser(command: str, usage: str, description: str | None) -> CommandParser:
    """Make the parser of a command; see `CommandParser`."""
    from blpseg.cli.parser import CommandParser

    return CommandParser(command, usage, description or "")


def add_overwrite(parser: CommandParser, what: str) -> None:
    """Add the flag that lets a command replace its earlier output."""
    parser.add_argument("--overwrite", type=bool, default=False, help=f"Replace {what}.")


class RunArguments(NamedTuple):
    """The arguments CONFIG and FOLDER of a command that trains."""

    config: Path
    """YAML file."""

    folder: Path | None
    """Folder of the data set; None if it was not given."""


RUN_DESCRIPTION = """\
CONFIG is a YAML file, or the name of a configuration that comes with blpseg: small (your own \
images, on a laptop), dinov2 and dinov3 (the same on a GPU), scenes and demo (the built-in \
scenes), animals and acdc (the real images of docs/evidence.md), voc and context (as published).

FOLDER is the folder of the data set, the same as --data.root=FOLDER. Without CONFIG, the \
configuration is small. Without an output, the run folder is runs/FOLDERNAME.

Options replace the values of CONFIG."""


def parse_run(
    parser: CommandParser, argv: Sequence[str], output_suffix: str = ""
) -> tuple[TrainConfig, Namespace]:
    """Parse `[CONFIG] [FOLDER] [--section.key=value ...]`.

    Args:
        parser: It has the options of `TrainConfig`, but those that the command sets itself.
        argv: The arguments.
        output_suffix: Ends the name of the default run folder.

    Returns:
        The configuration, and all options.

    Raises:
        UserError: An argument is wrong; the message says which, and what was expected.
    """
    from blpseg.config import TrainConfig

    normal = parser.normalize(argv)
    options = [token for token in normal if token.startswith("-")]
    run = find_run([token for token in normal if not token.startswith("-")], command=parser.prog)
    settings = read_settings(parser, run.config)
    if run.folder is not None:
        settings["data.root"] = str(run.folder)
    given = dict(option.removeprefix("--").split("=", 1) for option in options if "=" in option)
    root = given.get("data.root", settings.get("data.root"))
    if root is not None:
        name = Path(root).resolve().name
        settings.setdefault("output", str(Path("runs") / f"{name}{output_suffix}"))
    elif not {"-h", "--help"} & {*options}:
        raise UserError(
            f"expected the folder of a data set: {parser.prog} FOLDER; {parser.prog} --help "
            "explains the arguments"
        )
    found = parser.parse(options, settings)
    names = [part.name for part in fields(TrainConfig) if part.name in found]
    return TrainConfig(**{name: found[name] for name in names}), found


def find_run(arguments: Sequence[str], command: str) -> RunArguments:
    """Tell CONFIG and FOLDER apart.

    A name of a configuration that comes with blpseg is the configuration, even where a folder has
    this name: `scenes/` is the folder.

    Raises:
        UserError: An argument is neither, or there are too many.
    """
    if not arguments:
        return RunArguments(config_file(OWN_DATA_CONFIG), None)
    if len(arguments) > 2:
        raise UserError(
            f"expected at most CONFIG and FOLDER, got {' '.join(arguments)}; options start with --"
        )
    first, *rest = arguments
    if not rest and first not in shipped_configs() and Path(first).is_dir():
        return RunArguments(config_file(OWN_DATA_CONFIG), Path(first))
    if Path(first).is_dir() and rest and rest[0] in shipped_configs():
        raise UserError(f"expected CONFIG before FOLDER: {command} {rest[0]} {first}")
    config = config_file(first)
    if not rest:
        return RunArguments(config, None)
    if not Path(rest[0]).is_dir():
        raise UserError(
            f"{rest[0]}: expected the folder of a data set, found none; usage: {command} CONFIG "
            "FOLDER"
        )
    return RunArguments(config, Path(rest[0]))


def config_file(name: str) -> Path:
    """Find a configuration: a YAML file, or the name of one that comes with blpseg.

    Raises:
        UserError: There is none; the message lists the names.
    """
    from blpseg.cli.parser import suggestion

    path, shipped = Path(name), shipped_configs()
    if name in shipped:
        return shipped[name]
    if path.is_file():
        return path
    raise UserError(
        f"{name}: expected the folder of a data set, a YAML file, or the name of a configuration "
        f"({', '.join(shipped)}), found none of them{suggestion(name, shipped)}"
    )


def shipped_configs() -> dict[str, Path]:
    """Map the names of the configurations that come with blpseg to their files."""
    folder = files("blpseg").joinpath("configs")
    return {
        file.name.removesuffix(".yaml"): Path(str(file))
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
    }


def read_settings(parser: CommandParser, path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, and check their names.

    Returns:
        Dotted names of options to their values.

    Raises:
        UserError: The file is no YAML mapping, or has a setting that is no option.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: expected a YAML file, but it cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: expected settings as in docs/training.md, e.g. data: {{root: ...}}"
        )
    settings = {}
    for section, value in content.items():
        if isinstance(value, dict):
            settings |= {f"{section}.{key}": inner for key, inner in value.items()}
        elif value is not None or f"--{section}" in parser.options():
            settings[str(section)] = value
    for name in settings:
        try:
            parser.find_option(f"--{name}")
        except UserError as error:
            reason = str(error).replace("--", "").replace("option", "setting")
            raise UserError(f"{path}: {reason}") from error
    return settings


def add_model_use_arguments(parser: CommandParser) -> None:
    """Add the options of commands that run a trained model."""
    from blpseg.crf_constants import PRESETS
    from blpseg.views import Views

    parser.add_class_arguments(Views)
    add_query_stride(parser)
    parser.add_argument(
        "--crf",
        type=bool,
        default=False,
        help="Refine the labels by a dense CRF; needs pip install 'blpseg[crf]'.",
    )
    parser.add_argument(
        "--crf_preset",
        type=Literal[tuple(PRESETS)] | None,
        help="Constants of the CRF: of DeepLab's successors, or of BLPSeg's authors. Default: "
        "deeplab.",
    )
    parser.add_argument(
        "--crf_iterations", type=int | None, help="Mean-field iterations. Default: the preset's."
    )
    parser.add_argument(
        "--crf_smoothness",
        type=tuple[float, float] | None,
        help="Distance in pixels (sxy) and weight (compat) of the CRF's smoothness. Default: the "
        "preset's.",
    )
    parser.add_argument(
        "--crf_appearance",
        type=tuple[float, float, float] | None,
        help="Distance in pixels (sxy), difference of colors from 0 to 255 (srgb) and weight "
        "(compat) of the CRF's appearance term. Default: the preset's.",
    )
    parser.add_argument("--device", default="auto", help="A torch device; auto: a GPU, if any.")


def add_query_stride(parser: CommandParser) -> None:
    """Add the option that chooses the resolution of a trained model's logits."""
    parser.add_argument(
        "--query_stride",
        type=Literal[1, 2, 4] | None,
        help="Image pixels per pixel of the class logits after LAM; 1 and 2 make LAM upsample them "
        "along the image's borders. Default: as in training.",
    )


def views_of(options: Namespace) -> Views:
    """Make the views that those options describe."""
    from blpseg.views import Views

    return Views(**{field.name: options[field.name] for field in fields(Views)})


def crf_of(options: Namespace) -> CRF | None:
    """Make the CRF constants that those options describe; None without --crf.

    Raises:
        UserError: A constant is out of range, or is given without --crf.
    """
    from blpseg.crf_constants import DEEPLAB, PRESETS

    given = {part.name: options[f"crf_{part.name}"] for part in fields(DEEPLAB)}
    changes = {name: value for name, value in given.items() if value is not None}
    if not options.crf:
        named = [f"--crf_{name}" for name in changes]
        named += ["--crf_preset"] if options.crf_preset else []
        if named:
            raise UserError(f"{named[0]}: expected --crf with it, which switches the CRF on")
        return None
    return replace(PRESETS[options.crf_preset or "deeplab"], **changes)


def add_data_arguments(parser: CommandParser) -> None:
    """Add the data options that may differ from those of the training."""
    from blpseg.config import DataConfig, evaluation_fields

    training = make_parser("train", "", "")  # knows the options' help texts
    training.add_class_arguments(DataConfig, "data")
    types = get_type_hints(DataConfig)
    for part in evaluation_fields():
        name = f"--data.{part.name}"
        text = f"{training.find_option(name).help} Default: as in training."
        parser.add_argument(name, type=types[part.name] | None, help=text)


def data_changes(options: Namespace) -> dict[str, Any]:
    """List the data options that were given."""
    return {name: value for name, value in vars(options.data).items() if value is not None}


def print_table(table: Any) -> None:
    """Print a rich table."""
    from rich.console import Console

    Console().print(table)
