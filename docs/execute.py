"""Execute docs/tutorial.ipynb in an empty folder: python -m docs.execute [--write].

The command fails if a cell fails. With --write the outputs are stored in the notebook, so that the
page can be read without running it.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent / "tutorial.ipynb"
SECONDS_PER_CELL = 240
TERMINAL_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def main() -> None:
    """Execute the notebook; with --write, store its outputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="Store the outputs in the notebook.")
    write = parser.parse_args().write
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=SECONDS_PER_CELL, resources={"metadata": {"path": folder}}
        ).execute(cwd=folder)
    for cell in notebook.cells:
        _tidy(cell)
    if write:
        nbformat.write(notebook, NOTEBOOK)
    else:
        for cell in notebook.cells:
            for output in cell.get("outputs", ()):
                print(output.get("text", ""), end="")


def _tidy(cell: nbformat.NotebookNode) -> None:
    """Remove what differs between runs without meaning: times of cells, terminal codes, stderr."""
    cell.metadata.pop("execution", None)
    if "outputs" in cell:
        cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
        for output in cell.outputs:
            if "text" in output:
                output.text = TERMINAL_CODES.sub("", output.text)


if __name__ == "__main__":
    main()
