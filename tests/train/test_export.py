"""Exported files: they run elsewhere, agree with the model, and are refused where they don't."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blpseg import export as module
from blpseg.checkpoints import build_model, load_model, model_content, save_checkpoint
from blpseg.cli import main
from blpseg.config import DataConfig, ModelConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.errors import UserError
from blpseg.export import Deployed, export
from blpseg.inference import predict_image

SIZE = (48, 64)


@pytest.fixture
def photos(shapes: Path) -> torch.Tensor:
    folder = ScribbleFolder(DataConfig(shapes), "train")
    return torch.stack([folder[index].image for index in range(4)])


def test_what_is_exported_takes_photos_and_gives_what_predict_gives(
    checkpoint: Path, photos: torch.Tensor
) -> None:
    model = load_model(checkpoint).model
    labels, logits = Deployed(model).eval()(photos)
    assert labels.dtype == torch.uint8 and labels.shape == (4, *SIZE)
    assert logits.dtype == torch.float32 and logits.shape == (4, 3, *SIZE)
    for photo, found in zip(photos, labels, strict=True):
        assert (found == predict_image(model, photo).labels).double().mean() > 0.999


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_files_run_without_this_package(
    checkpoint: Path, photos: torch.Tensor, tmp_path: Path, suffix: str
) -> None:
    """In another process; blpseg_ops alone for torch.export, onnxruntime alone for ONNX."""
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
        run = (
            "import onnxruntime, json\n"
            "session = onnxruntime.InferenceSession('model.onnx')\n"
            "labels, logits = session.run(['labels', 'logits'], {'image': photos})\n"
            "about = session.get_modelmeta().custom_metadata_map\n"
        )
    else:
        run = (
            "import torch, json, blpseg_ops\n"
            "extra = {'blpseg.json': ''}\n"
            "program = torch.export.load('model.pt2', extra_files=extra).module()\n"
            "with torch.inference_mode():\n"
            "    labels, logits = (x.numpy() for x in program(torch.from_numpy(photos)))\n"
            "about = json.loads(extra['blpseg.json'])\n"
        )
    done = export(checkpoint, tmp_path / f"model{suffix}", size=SIZE)
    assert done.path == tmp_path / f"model{suffix}" and done.pixels == 4 * SIZE[0] * SIZE[1]
    assert done.error <= 1e-3 * done.largest and done.differing <= 5
    np.save(tmp_path / "photos.npy", photos.numpy())
    program = (
        "import numpy as np, sys\nphotos = np.load('photos.npy')\n"
        + run
        + "np.savez('found.npz', labels=labels, logits=logits)\n"
        "assert 'blpseg' not in sys.modules\nprint(json.dumps(about))\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    about = json.loads(ran.stdout)
    assert json.loads(about["classes"]) == ["background", "disc", "square"]
    assert about["iteration"] == "40" and "uint8 [batch, 3, 48, 64]" in about["input"]
    found = np.load(tmp_path / "found.npz")
    labels, logits = Deployed(load_model(checkpoint).model).eval()(photos)
    np.testing.assert_allclose(found["logits"], logits.detach().numpy(), rtol=1e-3, atol=1e-3)
    assert found["labels"].dtype == np.uint8
    assert (found["labels"] == labels.numpy()).mean() > 0.999


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_a_vit_is_exported(tmp_path: Path, suffix: str) -> None:
    """Its position embeddings are resized to the size that the file takes."""
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnxscript")
    config = ModelConfig("test_vit", pretrained=False, width=16, embedding_dim=8)
    classes = ["one", "two"]
    model = build_model(config, len(classes))
    save_checkpoint(
        tmp_path / "vit.pt", model_content(model, classes, {"model": vars(config)}, iteration=0)
    )
    done = export(tmp_path / "vit.pt", tmp_path / f"vit{suffix}", size=(45, 70))
    assert done.error <= 1e-3 * done.largest


def test_files_that_disagree_are_not_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that changes a weight a little."""
    write, run = module._FORMATS[".pt2"]

    def spoiled(deployed: Deployed, *rest: object) -> None:
        kept = deployed.model.seg_head[-1].bias.data.clone()
        deployed.model.seg_head[-1].bias.data[1] += 0.1
        write(deployed, *rest)
        deployed.model.seg_head[-1].bias.data = kept

    monkeypatch.setitem(module._FORMATS, ".pt2", (spoiled, run))
    path = tmp_path / "model.pt2"
    path.write_text("precious")
    message = "not written, as its logits differ from the model's by up to"
    with pytest.raises(UserError, match=message):
        export(checkpoint, path, size=SIZE, overwrite=True)
    assert path.read_text() == "precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt2", "trained.pt"]


def test_not_a_number_is_never_close(checkpoint: Path) -> None:
    deployed = Deployed(load_model(checkpoint).model).eval()

    def run(photos: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels, logits = deployed(photos)
        logits[0, 0, 0, 0] = torch.nan
        return labels, logits

    found = module._compare(deployed, run, SIZE)
    assert found.error == float("inf") and found.differing == 0


def test_arguments_that_do_not_fit_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a file name that ends in \.onnx or \.pt2"):
        export(checkpoint, tmp_path / "model.tflite")
    with pytest.raises(UserError, match="size: expected height and width in pixels"):
        export(checkpoint, tmp_path / "model.pt2", size=(0, 5))
    (tmp_path / "model.pt2").write_text("precious")
    with pytest.raises(UserError, match="exists already; --overwrite replaces it"):
        export(checkpoint, tmp_path / "model.pt2")
    assert (tmp_path / "model.pt2").read_text() == "precious"


def test_without_onnx_the_error_says_how_to_get_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"expected the package onnxruntime, .*blpseg\[onnx\]"):
        export(checkpoint, tmp_path / "model.onnx", size=SIZE)


def test_export_from_the_command_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shapes: Path
) -> None:
    """At a size that is no multiple of anything."""
    path = tmp_path / "new" / "model.pt2"
    assert main(["export", str(checkpoint), str(path), "--size=[45,70]"]) == 0
    assert f"{path}: logits differ from the model's by up to" in capsys.readouterr().out
    image = np.array(Image.open(shapes / "images/shape0.png").resize((70, 45)))
    labels, _ = torch.export.load(path).module()(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert labels.shape == (1, 45, 70)
