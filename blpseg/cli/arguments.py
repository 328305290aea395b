"""What commands' options have in common."""

from __future__ import annotations

from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from blpseg.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from blpseg.views import Views

_EVALUATION_DATA = (
    "root",
    "layout",
    "scribbles",
    "scribble_width",
    "unlabeled_value",
    "first_class_value",
    "mask_void_value",
    "mask_first_class_value",
)


def make_parser(command: str, usage: str, summary: str | None) -> ArgumentParser:
    """A parser that raises on wrong options, for `main` to show them."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    return ArgumentParser(
        prog=f"blpseg {command}",
        usage=f"blpseg {command} {usage}",
        description=summary,
        exit_on_error=False,
    )


def add_model_use_arguments(parser: ArgumentParser) -> None:
    """Add the options of whoever runs a trained model."""
    from blpseg.views import Views

    parser.add_class_arguments(Views)
    parser.add_argument(
        "--crf", type=bool, default=False, help="Refine labels by a dense CRF (extra: crf)."
    )
    parser.add_argument("--device", default="auto", help="A torch device; auto: a GPU, if any.")


def views_of(options: Namespace) -> Views:
    """The views that those options describe."""
    from blpseg.views import Views

    return Views(**{field.name: options[field.name] for field in fields(Views)})


def add_data_arguments(parser: ArgumentParser) -> None:
    """Add an option per field that says where labels are and what they mean."""
    from blpseg.config import DataConfig

    types = get_type_hints(DataConfig)
    for name in _EVALUATION_DATA:
        parser.add_argument(
            f"--data.{name}", type=types[name] | None, help="Default: as in training."
        )


def data_changes(options: Namespace) -> dict[str, Any]:
    """What those options change of the checkpoint's configuration."""
    return {name: value for name, value in vars(options.data).items() if value is not None}


def print_table(table: Any) -> None:
    """Print a rich table."""
    from rich.console import Console

    Console().print(table)


def config_file(name: str) -> Path:
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
