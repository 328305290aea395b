"""The calls of ``lam`` that are measured, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops

DIM, CHANNELS = 256, 21
# Deviation of every channel of random features; |f| is 16 times as much.
RANDOM = {"random, |f| 0.8": 0.05, "random, |f| 4": 0.25, "random, |f| 16": 1.0}

Run = Callable[[Tensor, Tensor], Tensor]  # features, values -> output


class Case(NamedTuple):
    """One call to measure."""

    source: str  # a photo of scikit-image or a key of RANDOM
    h: int
    w: int
    sigma: float = 6.0
    eps: float = 0.0
    backward: bool = False
    radius: int | None = None

    @property
    def pixels(self) -> int:
        """L, the pixels of the feature map."""
        return self.h * self.w

    def shrunk(self) -> Case:
        """The same on a small map, to try it out."""
        return self._replace(h=12, w=20)

    def __str__(self) -> str:
        """As in the names of benchmarks."""
        settings = f"{self.h} x {self.w}, sigma {self.sigma:g}, eps {self.eps:g}"
        if self.radius is not None:
            settings += f", radius {self.radius}"
        return f"{self.source}, {settings}, {'forward + backward' if self.backward else 'forward'}"


TRAINING = Case("astronaut", 96, 96)
SECOND_PHOTO = TRAINING._replace(source="coffee")
CITYSCAPES, DOUBLE = Case("astronaut", 256, 512), Case("astronaut", 512, 512)
# The last has nothing that could be left out: equal scores almost, and hardly a Gaussian.
HOSTILE = [Case(source, 96, 96) for source in RANDOM]
HOSTILE.append(HOSTILE[0]._replace(sigma=96.0))
WINDOWS = [size._replace(radius=radius) for size in (TRAINING, CITYSCAPES) for radius in (3, 6)]


def make_inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Features, values and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    if case.source in RANDOM:
        features = RANDOM[case.source] * torch.randn(1, DIM, case.h, case.w, generator=generator)
    else:
        features = _embedded_photo(case.source, case.h, case.w)
    values = torch.randn(1, CHANNELS, case.h, case.w, generator=generator)
    grad_output = torch.randn(values.shape, generator=generator)
    return (
        features.requires_grad_(case.backward),
        values.requires_grad_(case.backward),
        grad_output,
    )


def call(run: Run, case: Case, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """What is timed: the output and, in backward cases, the gradients of features and values."""
    features, values, grad_output = inputs
    output = run(features, values)
    if not case.backward:
        return (output,)
    return output.detach(), *torch.autograd.grad(output, (features, values), grad_output)


def _embedded_photo(name: str, h: int, w: int) -> Tensor:  # [1, D, h, w]
    """The model's embedding, freshly initialized, of a photo that scikit-image ships."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = blpseg_ops.LocalAggregation(DIM).embed(normalized_photo(name, h, w))
    return features.contiguous()


def normalized_photo(name: str, h: int, w: int) -> Tensor:  # [1, 3, 4 h, 4 w]
    """A photo that scikit-image ships, as a network gets it."""
    import skimage.data  # the rest of this file does without

    photo = torch.from_numpy(getattr(skimage.data, name)()).permute(2, 0, 1)[None] / 255
    photo = F.interpolate(photo, (4 * h, 4 * w), mode="bilinear", antialias=True)
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    return (photo - mean) / deviation
