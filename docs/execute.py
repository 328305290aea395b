"""Execute docs/tutorial.ipynb in an empty folder: python -m docs.execute [--write].

The command fails if a cell fails. With --write the outputs are stored in the notebook, so that the
page can be read without running it.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parent / "tutorial.ipynb"
SECONDS_PER_CELL = 600
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
    """Drop times, stderr and terminal codes; join the pieces in which stdout arrived."""
    cell.metadata.pop("execution", None)
    if cell.cell_type != "code":
        return
    outputs = [output for output in cell.outputs if output.output_type != "stream"]
    pieces = [o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout"]
    if text := TERMINAL_CODES.sub("", "".join(pieces)).strip("\n"):
        outputs.insert(0, nbformat.v4.new_output("stream", name="stdout", text=text + "\n"))
    for output in outputs:
        if "image/png" in output.get("data", {}):
            output.data["image/png"] = _in_256_colors(output.data["image/png"])
    cell.outputs = outputs


def _in_256_colors(png: str) -> str:
    """Re-encode a base64 PNG with a palette, at about a third of its size."""
    picture = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    main()
