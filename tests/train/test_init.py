"""`--init`: a run starts from a checkpoint, and other classes get fresh last layers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from blpseg import ScribbleSegmenter
from blpseg.checkpoints import build_model, load_model, start_from
from blpseg.config import LogConfig, ModelConfig, TrainConfig
from blpseg.errors import UserError
from blpseg.training import train

from .conftest import draw_shapes

MODEL = ModelConfig("test_resnet", pretrained=False, width=16, embedding_dim=8)
CLASSES = ["background", "disc", "square"]
MakeConfig = Callable[..., TrainConfig]


def test_all_weights_and_the_scaling_are_taken(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    content["normalization"] = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    torch.save(content, checkpoint)
    model = build_model(MODEL, 3)
    assert start_from(checkpoint, model, CLASSES) == f"Starts from {checkpoint}."
    trained = load_model(checkpoint).model
    for name, tensor in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.backbone.normalization == trained.backbone.normalization
    assert model.backbone.normalization.mean == pytest.approx((0.1, 0.2, 0.3))


def test_other_classes_get_fresh_last_layers(checkpoint: Path) -> None:
    model = build_model(MODEL, 5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = start_from(checkpoint, model, ["background", "a", "b", "c", "d"])
    assert said == f"Starts from {checkpoint}; fresh: the last layers, for 5 classes in place of 3."
    saved = torch.load(checkpoint, weights_only=True)["model"]
    for name, tensor in model.state_dict().items():
        fresh = name.startswith(("seg_head.4.", "annotation_head.4."))
        assert torch.equal(tensor, before[name] if fresh else saved[name]), name


def test_as_many_classes_with_other_names_are_other_classes(checkpoint: Path) -> None:
    said = start_from(checkpoint, build_model(MODEL, 3), ["background", "square", "disc"])
    assert "fresh: the last layers, for 3 classes in place of 3" in said


def test_lam_may_be_new_or_gone(checkpoint: Path, tmp_path: Path) -> None:
    plain = replace(MODEL, lam=False)
    assert start_from(checkpoint, build_model(plain, 3), CLASSES).endswith(f"{checkpoint}.")
    content = torch.load(checkpoint, weights_only=True)
    content["model"] = {n: t for n, t in content["model"].items() if not n.startswith("lam.")}
    torch.save(content, tmp_path / "plain.pt")
    said = start_from(tmp_path / "plain.pt", build_model(MODEL, 3), CLASSES)
    assert said.endswith("; fresh: LAM's embedding.")


def test_other_layers_are_refused_with_the_options_that_fit(checkpoint: Path) -> None:
    with pytest.raises(UserError) as caught:
        start_from(checkpoint, build_model(replace(MODEL, width=8), 3), CLASSES)
    message = str(caught.value)
    assert "--model.backbone=test_resnet --model.width=16 --model.embedding_dim=8" in message
    assert "in the checkpoint" in message and "in this run" in message


def save_segmenter(path: Path, **options: object) -> ScribbleSegmenter:
    """Fit a segmenter without LAM to a picture of shapes, whose sides are multiples of 32."""
    image, scribbles, _ = shape_picture()
    settings = {"num_classes": 3, "backbone": "test_resnet", "pretrained": False}
    segmenter = ScribbleSegmenter(**settings | {"scales": (1.0,), "sigma": 0.1} | options)
    segmenter.fit([image], [np.where(scribbles < segmenter.num_classes, scribbles, 255)]).save(path)
    return segmenter


def shape_picture() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(part.repeat(2, 0).repeat(2, 1) for part in draw_shapes(0))


def test_a_segmenter_becomes_a_network_that_says_the_same(tmp_path: Path) -> None:
    segmenter = save_segmenter(tmp_path / "segmenter.pt")
    model = build_model(replace(MODEL, lam=False), 3)
    said = start_from(tmp_path / "segmenter.pt", model, CLASSES)
    assert said == (
        f"Starts from the segmenter {tmp_path / 'segmenter.pt'}: its backbone, and its head for 3 "
        "classes; fresh: the annotation head, the decoder's other channels."
    )
    image, _, mask = shape_picture()
    images = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        found = model.eval()(images).softmax(1)[0].numpy()
        trained = model.train()(torch.cat([images, images.flip(3)])).softmax(1)[0].numpy()
    expected = segmenter.predict_proba(image)
    assert np.abs(found - expected).mean() < 0.02
    assert (found.argmax(0) == expected.argmax(0)).mean() > 0.98
    assert (trained.argmax(0) == mask).mean() > 0.85  # batch norm takes the batch's statistics


def test_a_class_that_the_segmenter_does_not_know_is_fresh(tmp_path: Path) -> None:
    image, scribbles, _ = shape_picture()
    segmenter = ScribbleSegmenter(3, "test_resnet", pretrained=False)
    with pytest.warns(UserWarning, match="no scribbles of class 1"):
        segmenter.fit([image], [np.where(scribbles == 1, 255, scribbles)])
    segmenter.save(tmp_path / "segmenter.pt")
    model = build_model(MODEL, 3)
    said = start_from(tmp_path / "segmenter.pt", model, CLASSES)
    assert "its head for 2 classes; fresh: LAM's embedding" in said
    assert said.endswith("the head of disc, not scribbled there.")
    assert not model.seg_head[4].weight[1].any() and model.seg_head[4].weight[2].any()


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"num_classes": 2}, {}, "expected 3 classes (background, disc, square), it has 2"),
        ({"backbone": "test_convnext"}, {}, "its backbone is test_convnext, the run has another"),
        ({"scales": (2.0,)}, {}, "expected scales with 1.0, the image's own size, it has [2.0]"),
        ({}, {"width": 4}, "expected --model.width of at least 6, 2 channels per class, got 4"),
    ],
)
def test_a_segmenter_that_does_not_fit_is_refused(
    tmp_path: Path, options: dict[str, object], changes: dict[str, int], message: str
) -> None:
    save_segmenter(tmp_path / "segmenter.pt", **options)
    with pytest.raises(UserError, match=re.escape(message)):
        start_from(tmp_path / "segmenter.pt", build_model(replace(MODEL, **changes), 3), CLASSES)


def test_a_segmenter_of_many_channels_is_refused(tmp_path: Path) -> None:
    image, scribbles, _ = draw_shapes(0)
    segmenter = ScribbleSegmenter(3, "test_resnet", pretrained=False)
    segmenter.fit([image[..., :2]], [scribbles]).save(tmp_path / "segmenter.pt")
    with pytest.raises(UserError, match="expected gray or RGB images, its images have 2 channels"):
        start_from(tmp_path / "segmenter.pt", build_model(MODEL, 3), CLASSES)


def test_a_run_starts_from_a_checkpoint_and_resumes_without_it(
    make_config: MakeConfig, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fine-tuned network is better from its first iteration; a resumed run takes last.pt."""
    config = make_config(init=checkpoint, log=LogConfig(scalars_every=1, keep_every=2))
    trained = train(config)
    assert f"Starts from {checkpoint}." in " ".join(capsys.readouterr().err.split())
    kept = sorted(path.name for path in config.output.glob("iteration-*.pt"))
    assert kept == ["iteration-000002.pt", "iteration-000004.pt"]
    assert load_model(config.output / kept[0]).iteration == 2
    assert trained.scores.miou > 0.45
    checkpoint.unlink()
    train(replace(config, resume=True), on_step=lambda step: None)
    train(replace(config, init=None, overwrite=True, log=LogConfig()), on_step=lambda step: None)
    assert not list(config.output.glob("iteration-*.pt"))
