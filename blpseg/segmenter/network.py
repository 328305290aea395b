"""Write a segmenter's head into the layers of a `BLPSeg` network, for `blpseg train --init`.

The head is linear on the levels of the backbone. The network's decoder can compute it exactly: a
score x passes every ReLU as two channels, relu(x) and relu(-x)::

    lateral_convs, ppm.bottleneck   +-W_l f_l of each level l, then ReLU
    top-down additions              sum over l of relu(+-W_l f_l)
    fpn_convs[0], fpn_bottleneck    the identity (a backbone of one level has no fpn_convs)
    seg_head                        (first channel - second channel + bias) / temperature

Batch norm between them is the identity in evaluation: its weight and bias undo its running mean and
deviation. Those are estimated from the segmenter's samples, so that it is close to the identity in
training, too. The other channels of these layers stay fresh; the last layer starts with weight 0
for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blpseg.errors import UserError
from blpseg.model import BLPSeg
from blpseg.segmenter.head import TEMPERATURE, Heads, fit_classes
from blpseg.segmenter.samples import Samples, join


@torch.no_grad()
def start_from_segmenter(
    path: Path, content: dict[str, Any], model: BLPSeg, classes: Sequence[str]
) -> str:
    """Give the model of a new run a segmenter's backbone and its head.

    The head is fitted again to the saved samples, on those levels that the network has too: the
    image at its own size, one level per stride. LAM and the annotation head stay fresh.

    Args:
        path: The file, for messages.
        content: What `ScribbleSegmenter.save` wrote.
        model: The new model, which is changed.
        classes: Names of its K classes.

    Returns:
        A sentence that says what was taken and what is fresh.

    Raises:
        UserError: The segmenter has another backbone or number of classes, images that the network
            cannot take, no features at the image's own size; or the model is too narrow.
    """
    settings = content["settings"]
    where = f"{path}, a saved segmenter, as the start of a run"
    if settings["num_classes"] != len(classes):
        raise UserError(
            f"{where}: expected {len(classes)} classes ({', '.join(classes)}), it has "
            f"{settings['num_classes']}"
        )
    if content["groups"] != 1:
        raise UserError(
            f"{where}: expected gray or RGB images, its images have {content['groups']} channels"
        )
    if 1.0 not in settings["scales"]:
        raise UserError(
            f"{where}: expected scales with 1.0, the image's own size, it has {settings['scales']}"
        )
    _load_backbone(model, content, where)
    samples = join([Samples(*found) for found in content["samples"].values()])
    columns, channels = _shared_columns(model, settings["scales"])
    samples = samples._replace(features=samples.features[:, columns])
    heads = Heads(channels, len(classes))
    heads.set_normalization(samples.features)
    fit_classes(heads, samples)
    labeled = samples.labels[samples.labeled].unique()
    width = model.seg_head[0].in_channels
    if width < 2 * len(labeled):
        raise UserError(
            f"{where}: expected --model.width of at least {2 * len(labeled)}, 2 channels per "
            f"class, got {width}"
        )
    _write_head(model, heads, labeled, samples)
    fresh = ["LAM's embedding"] if model.lam is not None else []
    fresh += ["the annotation head", "the decoder's other channels"]
    missing = [name for k, name in enumerate(classes) if k not in labeled]
    if missing:
        fresh.append(f"the head of {', '.join(missing)}, not scribbled there")
    return (
        f"Starts from the segmenter {path}: its backbone, and its head for {len(labeled)} classes; "
        f"fresh: {', '.join(fresh)}."
    )


def _load_backbone(model: BLPSeg, content: dict[str, Any], where: str) -> None:
    prefix = "backbone."
    theirs = {
        name.removeprefix(prefix): tensor
        for name, tensor in content["features"].items()
        if name.startswith(prefix)
    }
    ours = model.backbone.body.state_dict()
    if {name: tensor.shape for name, tensor in theirs.items()} != {
        name: tensor.shape for name, tensor in ours.items()
    }:
        name = content["settings"]["backbone"]
        raise UserError(
            f"{where}: its backbone is {name}, the run has another one; --model.backbone={name} "
            "fits, with any --model.width"
        )
    model.backbone.body.load_state_dict(theirs)


def _shared_columns(model: BLPSeg, scales: Sequence[float]) -> tuple[Tensor, list[int]]:
    """Return where a sample holds the network's levels, and how many channels each has."""
    channels = model.backbone.body.feature_info.channels()
    first = sum(channels) * list(scales).index(1.0)
    ranges = first + torch.arange(sum(channels))
    levels = ranges.split(channels)
    return torch.cat([levels[i] for i in model.backbone.levels]), model.backbone.channels


def _write_head(model: BLPSeg, heads: Heads, labeled: Tensor, samples: Samples) -> None:
    """Write the labeled classes' scores into the first channels, two per class."""
    weight = heads.classes.weight[labeled]
    signed = torch.stack([weight, -weight], 1).flatten(0, 1)  # [2 m, C], m labeled classes
    count = len(signed)
    levels = [*model.decoder.lateral_convs, model.ppm.bottleneck]
    parts = zip(
        levels,
        signed.split(heads.levels, 1),
        heads.scale.split(heads.levels),
        heads.normalize(samples.features).split(heads.levels, 1),
        strict=True,
    )
    total = torch.zeros(len(samples.labels), count)
    for (conv, norm, _), rows, scale, features in parts:
        conv.weight[:count] = 0
        conv.weight[:count, -rows.shape[1] :, 0, 0] = rows * scale
        scores = features @ rows.T
        _pass_through(norm, scores, samples.weights)
        total += scores.relu()
    for conv, norm, _ in (*model.decoder.fpn_convs[:1], model.decoder.fpn_bottleneck):
        _write_identity(conv, count)
        _pass_through(norm, total, samples.weights)
    first, _, second, _, last = model.seg_head
    _write_identity(first, count)
    _write_identity(second, count)
    last.weight.zero_()
    last.bias.zero_()
    for position, label in enumerate(labeled.tolist()):
        last.weight[label, 2 * position] = 1 / TEMPERATURE
        last.weight[label, 2 * position + 1] = -1 / TEMPERATURE
        last.bias[label] = heads.classes.bias[label] / TEMPERATURE


def _write_identity(conv: nn.Conv2d, count: int) -> None:
    """Make the first channels copies of the first inputs."""
    middle = conv.kernel_size[0] // 2
    conv.weight[:count] = 0
    conv.weight[range(count), range(count), middle, middle] = 1


def _pass_through(
    norm: nn.BatchNorm2d,
    values: Tensor,  # [n, m], samples of the first m channels
    weights: Tensor,  # [n]
) -> None:
    """Make batch norm the identity for channels of these means and deviations."""
    shares = weights / weights.sum()
    mean = shares @ values
    variance = shares @ (values - mean).square()
    count = values.shape[1]
    norm.running_mean[:count], norm.running_var[:count] = mean, variance
    norm.weight[:count], norm.bias[:count] = (variance + norm.eps).sqrt(), mean
