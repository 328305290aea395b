"""The authors' checkpoints: which load, which are refused; the logits equal the authors'."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg
from blpseg import authors, cli
from blpseg.authors import VOC_CLASSES, authors_name, load_authors_checkpoint, our_name
from blpseg.checkpoints import load_model
from blpseg.errors import UserError
from blpseg.model import BLPSeg
from blpseg.pretrained import IMAGENET

KEYS = json.loads((Path(__file__).parents[1] / "data/authors_checkpoint_keys.json").read_text())
State = dict[str, Tensor]


def authors_state(classes: int = 21) -> State:
    """Return a state dict with the authors' names and shapes; activations stay near 1."""
    rng = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in KEYS.items():
        if name.startswith(("seg_head.4", "scribble_head.4", "CELoss")):
            shape = [shape[0] - 21 + classes, *shape[1:]]
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=rng) + 0.5
        elif len(shape) == 4:
            fan_in = math.prod(shape[1:])
            state[name] = torch.randn(shape, generator=rng) * (1.5 / fan_in) ** 0.5
        elif name.endswith("weight"):
            state[name] = 0.5 + 0.2 * torch.rand(shape, generator=rng)
        else:
            state[name] = 0.2 * torch.randn(shape, generator=rng)
    return state


@pytest.fixture(scope="module")
def state() -> State:
    return authors_state()


@pytest.fixture(scope="module")
def file(state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint as the authors' program saves it."""
    path = tmp_path_factory.mktemp("authors") / "voc.pth"
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(wrapped | {"module.distance_prob": torch.zeros(1, 4, 4)}, path)
    return path


# --- the forward pass of SPEC.md, section 3, on the authors' names, in plain functions ------------


def conv(state: State, name: str, x: Tensor, **options: int) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options)


def norm(state: State, name: str, x: Tensor) -> Tensor:
    parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    mean, variance, weight, bias = (part[:, None, None] for part in parts)
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def conv_norm_relu(state: State, name: str, x: Tensor, padding: int = 0) -> Tensor:
    return norm(state, f"{name}.1", conv(state, f"{name}.0", x, padding=padding)).relu()


def bottleneck(state: State, name: str, x: Tensor, stride: int) -> Tensor:
    y = norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x)).relu()
    y = norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", y, stride=stride, padding=1)).relu()
    y = norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", y))
    if f"{name}.downsample.0.weight" in state:
        x = conv(state, f"{name}.downsample.0", x, stride=stride)
        x = norm(state, f"{name}.downsample.1", x)
    return (x + y).relu()


def resnet(state: State, x: Tensor) -> list[Tensor]:
    x = conv(state, "backbone.conv1.0", x, stride=2, padding=1)
    x = norm(state, "backbone.conv1.1", x).relu()
    x = norm(state, "backbone.conv1.4", conv(state, "backbone.conv1.3", x, padding=1)).relu()
    x = norm(state, "backbone.bn1", conv(state, "backbone.conv1.6", x, padding=1)).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    levels = []
    for layer, blocks in enumerate((3, 4, 23, 3), 1):
        for block in range(blocks):
            stride = 2 if layer > 1 and block == 0 else 1
            x = bottleneck(state, f"backbone.layer{layer}.{block}", x, stride)
        levels.append(x)
    return levels


def resized(x: Tensor, like: Tensor, align_corners: bool = False) -> Tensor:
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)


def decoder(state: State, levels: list[Tensor]) -> Tensor:
    deep = levels[3]
    pools = [
        norm(
            state,
            f"ppm.stages.{i}.2",
            conv(state, f"ppm.stages.{i}.1", F.adaptive_avg_pool2d(deep, s)),
        )
        for i, s in enumerate((1, 2, 3, 6))
    ]
    pools = [resized(pool, deep, align_corners=True) for pool in pools]
    top = conv_norm_relu(state, "ppm.bottleneck", torch.cat([*pools, deep], 1))
    sums = [conv_norm_relu(state, f"decoder.lateral_convs.{i}", levels[i]) for i in range(3)]
    above = top
    for i in (2, 1, 0):
        sums[i] = above = sums[i] + resized(above, sums[i])
    merged = [
        conv_norm_relu(state, f"decoder.fpn_convs.{i}", sums[i], padding=1) for i in range(3)
    ] + [top]
    merged = torch.cat([resized(one, merged[0]) for one in merged], 1)
    return conv_norm_relu(state, "decoder.fpn_bottleneck", merged, padding=1)


def head(state: State, name: str, x: Tensor) -> Tensor:
    x = conv(state, f"{name}.2", conv(state, f"{name}.0", x).relu()).relu()
    return conv(state, f"{name}.4", x)


def aggregated(state: State, images: Tensor, logits: Tensor) -> Tensor:
    """Compute LAM as published: a dense softmax, times a Gaussian, renormalized with 1e-7."""
    height, width = images.shape[2:]
    x = conv(state, "embed_proj.proj", F.pad(images, (0, -width % 4, 0, -height % 4)), stride=4)
    x = x - x.mean(1, keepdim=True)
    x = x / (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
    gain, bias = (state[f"embed_proj.norm.{part}"][:, None, None] for part in ("weight", "bias"))
    x = conv(state, "embed_proj.conv", x * gain + bias)
    h, w = logits.shape[2:]
    y, x_ = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    place = torch.stack([y, x_]).flatten(1).T.to(x.dtype)
    near = torch.exp(-(place[:, None] - place).square().sum(2) / (2 * 6.0**2))
    alike = torch.einsum("nca,ncb->nab", x.flatten(2), x.flatten(2)).softmax(1)
    weight = alike * near
    weight = weight / (weight.sum(1, keepdim=True) + 1e-7)
    return torch.einsum("nca,nab->ncb", logits.flatten(2), weight).view_as(logits)


def published(state: State, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return class logits at full size and annotation logits at stride 4."""
    decoded = decoder(state, resnet(state, images))
    logits = aggregated(state, images, head(state, "seg_head", decoded))
    return resized(logits, images), head(state, "scribble_head", decoded)


@pytest.mark.parametrize("size", [(96, 128), (75, 102)], ids=str)
def test_logits_are_the_authors(state: State, file: Path, size: tuple[int, int]) -> None:
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    model = blpseg.load_authors_checkpoint(file)
    assert model.backbone.normalization.mean == pytest.approx(IMAGENET.mean)
    assert model.backbone.normalization.std == pytest.approx(IMAGENET.std)
    assert not model.training and model.lam.eps == 1e-7 and model.lam.sigma == 6
    double = {name: t.double() if t.is_floating_point() else t for name, t in state.items()}
    with torch.no_grad():
        logits, annotation = published(double, images.double())
        mean, std = model.backbone.mean, model.backbone.std  # the model normalizes, as published
        scaled = images * std + mean
        ours, our_annotation = model(scaled), model.logits(scaled)[1]
    assert 0.1 < logits.std() < 10  # the tolerance 1e-4 is small relative to this
    torch.testing.assert_close(ours.double(), logits, rtol=0, atol=1e-4)
    torch.testing.assert_close(our_annotation.double(), annotation, rtol=0, atol=1e-4)


def test_names_map_one_to_one() -> None:
    with torch.device("meta"):
        ours = set(BLPSeg(21, "resnet101s", pretrained=False).state_dict())
    theirs = {name for name in KEYS if not name.startswith(("backbone.layernorm.", "CELoss."))}
    assert {our_name(name) for name in theirs} == ours
    assert {authors_name(name) for name in ours} == theirs
    assert all(authors_name(our_name(name)) == name for name in theirs)


def test_the_number_of_classes_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "context.pth"
    torch.save(authors_state(60), path)
    model = load_authors_checkpoint(path)
    assert model.num_classes == 60 and model.annotation_head[4].out_channels == 61


def test_all_that_does_not_fit_is_named(state: State, tmp_path: Path) -> None:
    spoilt = dict(state)
    del spoilt["ppm.bottleneck.0.weight"], spoilt["embed_proj.conv.bias"]
    spoilt["backbone.fc.weight"] = torch.zeros(2)
    spoilt["scribble_head.4.weight"] = torch.zeros(21, 256, 1, 1)
    path = tmp_path / "spoilt.pth"
    torch.save(spoilt, path)
    with pytest.raises(UserError) as caught:
        load_authors_checkpoint(path)
    assert str(caught.value).splitlines() == [
        f"4 problems in {path}:",
        "  ppm.bottleneck.0.weight: missing",
        "  embed_proj.conv.bias: missing",
        "  backbone.fc.weight: unknown",
        "  scribble_head.4.weight: expected shape [22, 256, 1, 1], got [21, 256, 1, 1]",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "expected a state dict"),
        ({"epoch": 3}, "expected a state dict"),
        ({"a": torch.zeros(2)}, r"seg_head\.4\.bias of shape \[K\], K >= 2; got no such tensor"),
        ({"seg_head.4.bias": torch.zeros(1)}, r"K >= 2; got \[1\]"),
        (Path("code"), "expected a file of tensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: object, problem: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=problem):
        load_authors_checkpoint(path)
    with pytest.raises(UserError, match="no such file"):
        load_authors_checkpoint(tmp_path / "none.pth")


def test_the_command_writes_a_checkpoint(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "voc.pt"
    assert cli.main(["import-checkpoint", str(file), str(output)]) == 0
    assert capsys.readouterr().out.startswith(f"{output} written; 21 classes: background, aero")
    loaded, expected = load_model(output), load_authors_checkpoint(file).state_dict()
    assert loaded.classes == list(VOC_CLASSES) and loaded.iteration == 0
    assert loaded.model.lam.eps == 1e-7
    state = loaded.model.state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    before = output.stat().st_mtime_ns
    assert cli.main(["import-checkpoint", str(file), str(output)]) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert output.stat().st_mtime_ns == before


def test_classes_of_other_sets_are_numbered() -> None:
    assert authors._numbered(3) == ["class_0", "class_1", "class_2"]
