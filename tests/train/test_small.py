"""The configuration `small` trains on the built-in scenes."""

from __future__ import annotations

from pathlib import Path

import pytest

from blpseg.cli import main


def test_small_trains_on_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["scenes", "mydata", "--count=4", "--val_count=1", "--size=96"]) == 0
    short = ["--model.pretrained=false", "--optim.iterations=2", "--optim.batch_size=2"]
    assert main(["train", "mydata", *short, "--device=cpu", "--data.workers=0"]) == 0
    shown = capsys.readouterr().out
    assert "checkpoints in runs/mydata: last.pt and best.pt." in shown
    assert main(["predict", "runs/mydata/last.pt", "mydata/images", "--output=predictions"]) == 0
    assert len(list(Path("predictions/masks").iterdir())) == 5
