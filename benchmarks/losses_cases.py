"""The calls of the losses that are measured, and their inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ALL, BLP, PSEUDO, SELF_TRAINING = "all losses", "blp_loss", "pseudo_labels", "self-training"
GAMMA, UNLABELED_WEIGHT, THRESHOLD, IGNORE = 2.0, 0.02, 0.9, 255

LABELED = 0.03  # of all pixels
CLASSES_OF_AN_IMAGE = 4
BRUSH, TURN = 3, 0.05  # width of a stroke in pixels; by how much it turns each pixel, in radians


class Inputs(NamedTuple):
    """What all peers get."""

    seg_logits: Tensor  # [N, K, h, w]
    annotation_logits: Tensor  # [N, K + 1, h, w]
    target: Tensor  # [N, H, W] uint8
    class_present: Tensor  # [N, K] bool


# Losses, pseudo labels, or both in this order.
Run = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]


class Case(NamedTuple):
    """One call to measure."""

    what: str
    classes: int
    backward: bool
    n: int = 10
    low: int = 96
    high: int = 384
    device: str = "cpu"

    def shrunk(self) -> Case:
        """The same on small images, to try it out."""
        return self._replace(n=2, low=12, high=48)

    def __str__(self) -> str:
        """As in the names of benchmarks."""
        size = f"N {self.n}, K {self.classes}, {self.low} to {self.high}, {self.device}"
        return f"{self.what}, {size}, {'forward + backward' if self.backward else 'forward'}"


def make_inputs(case: Case) -> Inputs:
    """Logits of a network that has learned something, and scribbles.

    Each image has four classes. Their logits are large in places of some 12 pixels at low
    resolution, so that most pixels are sure enough for a pseudo label, as in training.
    """
    rng = torch.Generator().manual_seed(0)
    chosen = torch.stack(
        [torch.randperm(case.classes, generator=rng)[:CLASSES_OF_AN_IMAGE] for _ in range(case.n)]
    )
    strokes = [_scribbles(case, classes, rng) for classes in chosen]
    present = torch.zeros(case.n, case.classes, dtype=torch.bool).scatter_(1, chosen, True)
    seg, annotation = (_logits(case, case.classes + more, chosen, rng) for more in (0, 1))
    annotation[:, case.classes] += 12  # nearly everywhere nobody annotates
    inputs = seg, annotation, torch.stack(strokes), present
    seg, annotation, target, present = (tensor.to(case.device) for tensor in inputs)
    seg.requires_grad_(case.backward)
    annotation.requires_grad_(case.backward)
    return Inputs(seg, annotation, target, present)


def call(run: Run, case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """What is timed: losses and labels and, in backward cases, the logits' gradients."""
    made = run(*inputs)
    if case.backward:
        losses = [tensor for tensor in made if tensor.is_floating_point()]
        wanted = inputs[: len(losses)]  # the BLP loss is for the first, the other for the second
        made = *(tensor.detach() for tensor in made), *torch.autograd.grad(sum(losses), wanted)
    if case.device != "cpu":
        torch.cuda.synchronize()
    return made


def _logits(case: Case, channels: int, chosen: Tensor, rng: torch.Generator) -> Tensor:
    coarse = torch.zeros(case.n, channels, case.low // 12 + 1, case.low // 12 + 1)
    for image, classes in zip(coarse, chosen, strict=True):
        image[classes] = 6 + 8 * torch.randn(len(classes), *image.shape[1:], generator=rng)
    smooth = F.interpolate(coarse, (case.low, case.low), mode="bilinear")
    return smooth + torch.randn(smooth.shape, generator=rng)


def _scribbles(case: Case, classes: Tensor, rng: torch.Generator) -> Tensor:  # [H, W]
    """Smooth strokes of random classes until enough pixels are labeled."""
    target = torch.full((case.high, case.high), case.classes, dtype=torch.uint8)
    length = case.high // 3
    brush = torch.arange(BRUSH) - BRUSH // 2
    while (target != case.classes).float().mean() < LABELED:
        start, label = torch.rand(2, generator=rng), torch.randint(len(classes), (), generator=rng)
        turns = TURN * torch.randn(length, generator=rng)
        heading = 2 * math.pi * torch.rand((), generator=rng) + turns.cumsum(0)
        y, x = (
            (case.high * begin + step.cumsum(0)).long()
            for begin, step in zip(start, (heading.sin(), heading.cos()), strict=True)
        )
        y, x = y[:, None, None] + brush[:, None], x[:, None, None] + brush
        inside = (y >= 0) & (y < case.high) & (x >= 0) & (x < case.high)
        y, x = torch.broadcast_tensors(y, x)
        target[y[inside], x[inside]] = classes[label].to(torch.uint8)
    return target
