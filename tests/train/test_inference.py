"""From an image to predictions: views, windows, and the averages of their logits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blpseg.checkpoints import load_model
from blpseg.data.transforms import normalize
from blpseg.errors import UserError
from blpseg.inference import predict_image
from blpseg.views import Views


class Recorder(nn.Module):
    """Stands in for a model: keeps what it sees, and answers with the means of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(images)
        return answer(images)


def answer(images: Tensor) -> tuple[Tensor, Tensor]:  # [1, 3, H, W] -> two at stride 4
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")
    gray = F.avg_pool2d(padded.mean(1, keepdim=True), 4)
    return torch.cat([gray, -gray], 1), torch.cat([gray, 0.5 - gray, 0 * gray], 1)


def normalized(image: Tensor) -> Tensor:  # [3, H, W] uint8 -> [1, 3, H, W]
    return normalize()(torch.utils._pytree.tree_map(lambda x: x, as_image(image)))[None]


def as_image(image: Tensor) -> Tensor:
    from torchvision import tv_tensors

    return tv_tensors.Image(image)


@pytest.fixture
def ramp() -> Tensor:
    """Return an image [3, 30, 50] that brightens from left to right."""
    return torch.linspace(0, 255, 50).round().to(torch.uint8).expand(3, 30, 50)


@pytest.fixture
def noise() -> Tensor:
    """Return an image [3, 45, 70] of smooth noise."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 9, generator=rng)
    return (255 * F.interpolate(coarse, (45, 70), mode="bicubic").clamp(0, 1))[0].to(torch.uint8)


def test_scales_and_flips_are_what_the_model_sees(ramp: Tensor) -> None:
    model = Recorder()
    predict_image(model, ramp, Views([0.5, 1, 1.25], flip=True))
    assert [tuple(view.shape) for view in model.seen] == [
        (1, 3, height, width) for height, width in [(15, 25), (30, 50), (38, 62)] for _ in range(2)
    ]
    for plain, mirrored in zip(model.seen[::2], model.seen[1::2], strict=True):
        assert torch.equal(plain.flip(-1), mirrored)
        assert (plain[..., 1:] >= plain[..., :-1]).all()
