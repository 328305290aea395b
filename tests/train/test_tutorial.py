"""docs/tutorial.ipynb is stored as it ran; `python -m docs.execute` runs it, as CI does."""

from __future__ import annotations

import json
from pathlib import Path

CELLS = json.loads((Path(__file__).parents[2] / "docs/tutorial.ipynb").read_text())["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_every_cell_was_run_in_order() -> None:
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))


def test_no_output_is_an_error_or_names_a_private_path() -> None:
    for cell in CODE:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert "/home/" not in json.dumps(output)
            assert "/tmp/" not in json.dumps(output)


def test_the_pictures_are_stored() -> None:
    pictures = [o for cell in CODE for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) >= 2
