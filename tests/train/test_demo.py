"""`blpseg demo`, with hardly any training: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blpseg import demo as demo_module
from blpseg.ablation import BASELINE as BASELINE_VARIANT
from blpseg.cli import main
from blpseg.demo import BASELINE, METHOD, PHOTO, DemoSize


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = DemoSize(scenes=4, val_scenes=2, iterations=2, photo_iterations=1)
    monkeypatch.setattr(demo_module, "QUICK", tiny)
    output = tmp_path / "demo"
    assert main(["demo", "--quick", "--output", str(output)]) == 0

    result = json.loads((output / "demo.json").read_text())
    assert result["quick"] is True
    assert result["iterations"] == {BASELINE: 2, METHOD: 2, PHOTO: 1}
    assert set(result["scores"]) == {BASELINE, METHOD, PHOTO}
    printed = capsys.readouterr().out
    for scores in result["scores"].values():
        assert 0 <= scores["miou"] <= 1
        assert f"{100 * scores['miou']:.1f}" in printed
        for field in ("by_scribble_distance", "by_border_distance"):
            assert sum(part["pixels"] for part in scores[field]) > 0
    won = result["scores"][METHOD]["miou"] > result["scores"][BASELINE]["miou"]
    assert ("is ahead" in " ".join(printed.split())) == won
    assert ("does not beat" in " ".join(printed.split())) != won

    for name in ("scenes.png", "photo.png", "accuracy.png"):
        picture = np.asarray(Image.open(output / name))
        assert min(picture.shape[:2]) > 100
        assert picture.std() > 10

    assert main(["demo", "--quick", "--output", str(output)]) == 2
    assert "exists already and is not empty" in capsys.readouterr().err


def test_only_the_method_differs(tmp_path: Path) -> None:
    """Both networks see the same data, crops, schedule and seed."""
    method = demo_module._config(tmp_path, "run", "scenes", 10)
    baseline = BASELINE_VARIANT.of(method)
    changed = {}
    for part in ("data", "model", "augment", "optim", "log"):
        theirs, ours = vars(getattr(baseline, part)), vars(getattr(method, part))
        changed |= {key: theirs[key] for key in ours if ours[key] != theirs[key]}
    assert changed == {"lam": False, "gamma": 0.0, "self_training_from": None}
    assert baseline.seed == method.seed
