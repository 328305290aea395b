"""The recipes of pretrained transformers, with random weights and tiny crops."""

from __future__ import annotations

from pathlib import Path

import pytest

from blpseg.cli import main


@pytest.mark.parametrize("recipe", ["dinov2", "dinov3"])
def test_a_recipe_trains_and_predicts_in_windows(recipe: str, shapes: Path, tmp_path: Path) -> None:
    short = ["--model.pretrained=false", "--optim.iterations=1", "--optim.batch_size=2"]
    short += ["--augment.crop=40", "--data.workers=0", "--device=cpu"]
    run = tmp_path / "run"
    assert main(["train", recipe, str(shapes), *short, f"--output={run}"]) == 0
    views = ["--flip", "--window=32", "--stride=32", "--device=cpu"]
    photo, output = str(shapes / "images/shape0.png"), tmp_path / "out"
    assert main(["predict", str(run / "last.pt"), photo, f"--output={output}", *views]) == 0
    assert (output / "masks/shape0.png").is_file()
