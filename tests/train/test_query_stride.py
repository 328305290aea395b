"""One checkpoint at several query strides: windows, evaluation, prediction, export, benchmark."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import query_stride as benchmark
from benchmarks import report_query_stride
from blpseg.checkpoints import load_model
from blpseg.cli import main
from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.errors import UserError
from blpseg.inference import run_views
from blpseg.views import Views


def test_windows_at_a_finer_stride(checkpoint: Path, shapes: Path) -> None:
    model = load_model(checkpoint, query_stride=2).model
    assert model.stride == 2
    image = ScribbleFolder(DataConfig(shapes))[0].image[:, :45]
    (view,) = run_views(model, image, Views(window=32, stride=16))
    assert view.segmentation.shape == (3, 23, 32) and view.annotation.shape == (4, 23, 32)
    (corner,) = run_views(model, image[:, :32, :32], Views())
    torch.testing.assert_close(view.segmentation[:, :8, :8], corner.segmentation[:, :8, :8])


def test_the_commands_take_a_query_stride(
    checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--query_stride=1", "--device=cpu"]
    scores = tmp_path / "scores.json"
    assert main(["evaluate", str(checkpoint), *given, f"--output={scores}"]) == 0
    assert json.loads(scores.read_text())["stride"] == 1
    assert "logits at stride 1" in scores.with_suffix(".html").read_text()
    photo, output = str(shapes / "images/shape0.png"), f"--output={tmp_path / 'out'}"
    assert main(["predict", str(checkpoint), photo, output, *given]) == 0
    exported = str(tmp_path / "model.pt2")
    assert main(["export", str(checkpoint), exported, "--size=[30,42]", "--query_stride=2"]) == 0
    assert main(["predict", str(checkpoint), photo, "--output=o", "--query_stride=3"]) == 2
    assert "--query_stride: expected one of 1, 2, 4 or null, got '3'" in capsys.readouterr().err


def test_a_model_without_lam_has_one_stride(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["config"]["model"]["lam"] = False
    torch.save(content, checkpoint)
    with pytest.raises(UserError, match="query_stride: expected a model with LAM"):
        load_model(checkpoint, query_stride=2)


def test_the_benchmark(
    checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.json"
    argv = ["query_stride", str(checkpoint), str(shapes), f"--output={path}"]
    monkeypatch.setattr(sys, "argv", argv)
    benchmark.main()
    result = json.loads(path.read_text())
    assert [row["stride"] for row in result["results"]] == [4, 2, 1]
    assert all(row["seconds"] > 0 for row in result["results"])
    table = report_query_stride.report(result)
    assert "| 2 | " in table and "2 images, one network on test_resnet" in table
