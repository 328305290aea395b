"""`blpseg demo`, with hardly any training: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blpseg import demo as demo_module
from blpseg.cli import main
from blpseg.demo import BASELINE, METHOD, PICTURES, DemoSize


def test_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = DemoSize(scenes=4, val_scenes=2, iterations=2, photo_iterations=1)
    monkeypatch.setattr(demo_module, "QUICK", tiny)
    output = tmp_path / "demo"
    assert main(["demo", "--quick", "--seeds=[0,1]", "--output", str(output)]) == 0

    result = json.loads((output / "demo.json").read_text())
    assert result["quick"] is True
    assert result["seeds"] == [0, 1]
    assert result["iterations"] == {"scenes": 2, "photos": 1}
    mious = {name: [one["miou"] for one in of] for name, of in result["scores"].items()}
    assert {name: len(of) for name, of in mious.items()} == {BASELINE: 2, METHOD: 2}
    gains = np.subtract(mious[METHOD], mious[BASELINE])
    summary = result["summary"]["miou"]
    assert summary["gain"] == pytest.approx({"mean": gains.mean(), "deviation": gains.std(ddof=1)})
    printed = " ".join(capsys.readouterr().out.split())
    for name, values in mious.items():
        assert 0 <= min(values) <= max(values) <= 1
        assert summary[name]["mean"] == pytest.approx(np.mean(values))
        assert f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}" in printed
    assert ("is ahead of" in printed) == (gains.mean() > 0)
    assert ("does not beat" in printed) == (gains.mean() <= 0)
    for one in [one for of in result["scores"].values() for one in of]:
        for field in ("by_scribble_distance", "by_border_distance"):
            assert sum(part["pixels"] for part in one[field]) > 0

    for name in PICTURES:
        picture = np.asarray(Image.open(output / name))
        assert min(picture.shape[:2]) > 100
        assert picture.std() > 10

    assert main(["demo", "--quick", "--output", str(output)]) == 2
    assert "exists already and is not empty" in capsys.readouterr().err
    assert main(["demo", "--seeds=[]", "--output", str(tmp_path / "other")]) == 2
    assert "seeds: expected one or more, got none" in capsys.readouterr().err


@pytest.mark.parametrize("of", ["_scene_config", "_photo_config"])
def test_only_the_method_differs(of: str, tmp_path: Path) -> None:
    """Both networks see the same data, crops, schedule and seed."""
    pair = demo_module._pair(getattr(demo_module, of)(tmp_path, demo_module.FULL, 3))
    baseline, method = pair[BASELINE], pair[METHOD]
    changed = {}
    for part in ("data", "model", "augment", "optim", "log"):
        theirs, ours = vars(getattr(baseline, part)), vars(getattr(method, part))
        changed |= {key: theirs[key] for key in ours if ours[key] != theirs[key]}
    assert changed == {"lam": False, "gamma": 0.0}
    assert baseline.seed == method.seed == 3
    assert baseline.output != method.output
