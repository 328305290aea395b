"""The network: shapes on any backbone, what learns from what, and the authors' layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blpseg import BLPSeg
from blpseg.backbone import Backbone
from blpseg.model import PyramidPooling, UPerNetDecoder

SMALL = {"pretrained": False, "width": 16, "embedding_dim": 8}


@pytest.fixture(scope="module")
def small() -> BLPSeg:
    torch.manual_seed(0)
    return BLPSeg(5, "resnet10t", **SMALL)


def _batch(height: int = 70, width: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, height, width, generator=rng)
    target = torch.randint(0, 6, (2, height, width), generator=rng, dtype=torch.uint8)
    return images, target, torch.ones(2, 5, dtype=torch.bool)


def test_has_the_authors_layers() -> None:
    """Every tensor of the published checkpoints has its place here, of the same shape."""
    path = Path(__file__).parent.parent / "data" / "authors_checkpoint_keys.json"
    authors = json.loads(path.read_text())
    unused = {key for key in authors if key.startswith(("backbone.layernorm.", "CELoss."))}
    names = {"backbone": "backbone.body", "scribble_head": "annotation_head", "embed_proj": "lam"}
    theirs = {}
    for key in authors.keys() - unused:
        part, rest = key.split(".", 1)
        theirs[f"{names.get(part, part)}.{rest}"] = authors[key]
    with torch.device("meta"):
        model = BLPSeg(21, "resnet101s", pretrained=False)
    ours = {key: list(tensor.shape) for key, tensor in model.state_dict().items()}
    assert ours == theirs


@pytest.mark.parametrize("size", [(64, 64), (70, 50), (33, 97)], ids=str)
def test_shapes(small: BLPSeg, size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size)
    model = small.eval()
    with torch.no_grad():
        logits = model(images)
        seg, annotation = model.predict(images)
        low = model.logits(images)
    assert logits.shape == (1, 5, *size)
    assert torch.equal(seg, logits)
    assert annotation.shape == (1, 6, *size)
    grid = (-(-size[0] // 4), -(-size[1] // 4))
    assert [tuple(x.shape) for x in low] == [(1, 5, *grid), (1, 6, *grid)]


def test_a_negative_weight_of_pseudo_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="pseudo_label_weight must be >= 0, got -1"):
        BLPSeg(3, "resnet10t", pseudo_label_weight=-1.0, **SMALL)


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "convnext_atto", "pvt_v2_b0"])
def test_other_backbones_at_odd_sizes(backbone: str) -> None:
    model = BLPSeg(3, backbone, **SMALL).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 75, 54)).shape == (1, 3, 75, 54)


# Strides 16, 16, 16 with position embeddings; the same, rotary; 16, 32, 64.
@pytest.mark.parametrize("backbone", ["test_vit", "vit_tiny_patch16_dinov3_qkvb", "shvit_s1"])
def test_backbones_without_the_published_strides(backbone: str) -> None:
    torch.manual_seed(0)
    model = BLPSeg(5, backbone, **SMALL)
    losses = model.losses(*_batch())
    (losses["blp"] + losses["annotation"]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    assert model.lam.sigma == 6 * 4 / 16
    with torch.no_grad():
        seg, annotation = model.eval().logits(torch.rand(1, 3, 33, 46))
    assert (seg.shape, annotation.shape) == ((1, 5, 9, 12), (1, 6, 9, 12))


def test_logits_of_a_vit_lie_where_its_patches_do() -> None:
    """Padding to whole patches moves nothing: logits are those of a larger image, cut."""
    torch.manual_seed(0)
    model = BLPSeg(3, "test_vit", query_stride=2, **SMALL).eval()
    images = torch.rand(1, 3, 35, 50)
    padded = F.pad(images, (0, 14, 0, 13), mode="replicate")
    with torch.no_grad():
        for found, larger in zip(model.logits(images), model.logits(padded), strict=True):
            assert found.shape[2:] == (18, 25)
            torch.testing.assert_close(found, larger[:, :, :18, :25])


def test_the_baseline_on_a_vit() -> None:
    model = BLPSeg(3, "test_vit", lam=False, **SMALL).eval()
    with torch.no_grad():
        assert model.logits(torch.rand(1, 3, 33, 46))[0].shape == (1, 3, 9, 12)


@pytest.mark.parametrize(
    ("name", "frozen"),
    [("efficientvim_m1", ["body.model.weights"]), ("xcit_nano_12_p8_224", [])],
)
def test_parameters_that_no_feature_needs_are_frozen(name: str, frozen: list[str]) -> None:
    """DistributedDataParallel waits for a gradient of every other parameter."""
    backbone = Backbone(name, pretrained=False)
    levels = backbone(torch.rand(2, 3, 64, 128))
    assert levels[0].shape[2:] == (64 // backbone.stride, 128 // backbone.stride)
    sum(level.sum() for level in levels).backward()
    parameters = dict(backbone.named_parameters())
    assert [name for name, p in parameters.items() if not p.requires_grad] == frozen
    assert [name for name, p in parameters.items() if p.grad is None] == frozen


def test_what_cannot_work_is_refused() -> None:
    message = "backbone must take images of any size, 'mixer_s32_224' takes 224 x 224 only"
    with pytest.raises(ValueError, match=message):
        BLPSeg(3, "mixer_s32_224", **SMALL)
    with pytest.raises(ValueError, match="num_classes must be >= 2, got 1"):
        BLPSeg(1, "resnet10t", **SMALL)


def test_losses_reach_every_parameter(small: BLPSeg) -> None:
    small.train().zero_grad()
    losses = small.losses(*_batch())
    assert set(losses) == {"blp", "annotation", "pseudo_labels", "regularizer"}
    assert losses["pseudo_labels"] is None and losses["regularizer"] is None
    (losses["blp"] + losses["annotation"]).backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_annotation_loss_shapes_its_head_alone(small: BLPSeg) -> None:
    small.train().zero_grad()
    small.losses(*_batch())["annotation"].backward()
    learning = {name for name, p in small.named_parameters() if p.grad is not None}
    assert learning
    assert all(name.startswith("annotation_head.") for name in learning)


def test_the_blp_loss_leaves_the_annotation_head_alone(small: BLPSeg) -> None:
    small.train().zero_grad()
    small.losses(*_batch())["blp"].backward()
    assert all(p.grad is None for p in small.annotation_head.parameters())


def test_self_training_learns_from_pseudo_labels(small: BLPSeg) -> None:
    images, target, present = _batch()
    target[:] = 5
    target[:, 10:14, 10:14] = 1
    model = small.eval()
    model.threshold = 0.0  # label every pixel
    try:
        losses = model.losses(images, target, present, self_training=True)
    finally:
        model.threshold = 0.9
    pseudo = losses["pseudo_labels"]
    assert pseudo is not None
    assert pseudo.shape == target.shape
    assert (pseudo[:, 10:14, 10:14] == 1).all()
    expected = model(images).argmax(1)
    outside = target == 5
    assert (pseudo[outside] == expected[outside]).all()
    assert losses["blp"] != model.losses(images, target, present)["blp"]


def test_pseudo_labels_have_a_mean_of_their_own_with_a_weight(small: BLPSeg) -> None:
    images, target, present = _batch()
    target[:] = 5
    target[:, 10:14, 10:14] = 1
    model = small.eval()
    model.threshold, model.pseudo_label_weight = 0.0, 0.1
    try:
        losses = model.losses(images, target, present, self_training=True)
        pseudo = losses["pseudo_labels"]
        assert pseudo is not None
        rest = pseudo.where(target == 5, 255)
        of_rest = model.losses(images, rest, present)["blp"]
    finally:
        model.threshold, model.pseudo_label_weight = 0.9, None
    scribbles = model.losses(images, target, present)["blp"]
    torch.testing.assert_close(losses["blp"], scribbles + 0.1 * of_rest)


def test_the_baseline_is_partial_cross_entropy() -> None:
    torch.manual_seed(0)
    model = BLPSeg(5, "resnet10t", lam=False, gamma=0.0, **SMALL).eval()
    assert not any(key.startswith("lam.") for key in model.state_dict())
    images, target, present = _batch()
    per_image = [
        F.cross_entropy(logits[None], y[None].long(), ignore_index=5)
        for logits, y in zip(model(images), target, strict=True)
    ]
    blp = model.losses(images, target, present)["blp"]
    torch.testing.assert_close(blp, torch.stack(per_image).mean())


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_query_stride_makes_finer_logits(stride: int) -> None:
    torch.manual_seed(0)
    plain = BLPSeg(3, "resnet10t", **SMALL).eval()
    model = BLPSeg(3, "resnet10t", query_stride=stride, **SMALL).eval()
    model.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 33, 46)
    seg, annotation = model.logits(images)
    grid = (-(-33 // stride), -(-46 // stride))
    assert seg.shape == (1, 3, *grid)
    assert annotation.shape == (1, 4, *grid)
    assert model(images).shape == (1, 3, 33, 46)
    if stride == 4:
        torch.testing.assert_close(seg, plain.logits(images)[0])
    target = torch.randint(0, 4, (1, 33, 46))
    losses = model.losses(images, target, torch.ones(1, 3, dtype=torch.bool), self_training=True)
    (losses["blp"] + losses["annotation"]).backward()
    assert model.lam.conv.weight.grad.abs().sum() > 0


def test_lam_sees_sigma_and_eps() -> None:
    model = BLPSeg(3, "resnet10t", sigma=2.5, eps=1e-7, **SMALL)
    assert (model.lam.sigma, model.lam.eps) == (2.5, 1e-7)


def test_pyramid_pooling_mixes_global_context() -> None:
    ppm = PyramidPooling(4, 8).eval()
    top = torch.randn(1, 4, 7, 9)
    changed = top.clone()
    changed[..., -1, -1] += 10
    assert (ppm(top) - ppm(changed))[..., 0, 0].abs().max() > 0
    assert ppm(top).shape == (1, 8, 7, 9)


def test_the_decoder_sees_every_level() -> None:
    decoder = UPerNetDecoder([3, 5, 7], 8).eval()
    levels = [torch.randn(1, c, 16 >> i, 20 >> i) for i, c in enumerate([3, 5, 7, 8])]
    out = decoder(levels)
    assert out.shape == (1, 8, 16, 20)
    for i in range(4):
        changed = [x + 1 if j == i else x for j, x in enumerate(levels)]
        assert (decoder(changed) - out).abs().max() > 1e-4, i
