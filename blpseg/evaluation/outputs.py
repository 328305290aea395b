"""The two files of an evaluation: scores as JSON, and a page to look at."""

from __future__ import annotations

from pathlib import Path

from blpseg.errors import UserError


def default_output(checkpoint: Path) -> Path:
    """Return the default JSON file of a checkpoint, in the checkpoint's folder."""
    return checkpoint.with_suffix(".evaluation.json")


def page_of(output: Path) -> Path:
    """Return the path of the HTML page that belongs to a JSON file."""
    return output.with_suffix(".html")


def check_outputs(output: Path, overwrite: bool) -> None:
    """Check that both files may be written.

    Raises:
        UserError: `output` is no name of a JSON file, or a file exists and `overwrite` is false.
    """
    if output.suffix == ".html":
        raise UserError(
            f"{output}: expected the name of a JSON file; the page gets the same name with .html"
        )
    for path in (output, page_of(output)):
        if path.exists() and not overwrite:
            raise UserError(
                f"{path}: exists already; --overwrite replaces it, --output names another file"
            )
