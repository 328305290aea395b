"""Each example of the ops runs as it stands, and learns; test_tool_examples.py has the others."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path

import pytest
import torch

OTHERS = {"feature_upsampling", "label_studio_backend", "napari_widget"}  # they train nothing
EXAMPLES = sorted(
    path
    for path in (Path(__file__).parents[2] / "examples").glob("*.py")
    if path.stem not in OTHERS
)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(example.read_text().splitlines()) < 40
    torch.manual_seed(0)
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    losses = [float(blp) for blp in re.findall(r"blp (\S+),", printed)]
    assert len(losses) >= 5
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
