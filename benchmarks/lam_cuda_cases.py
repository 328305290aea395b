"""The calls of ``lam`` that are measured on a GPU, and their inputs."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

import blpseg_ops
from benchmarks import lam_cases
from benchmarks.lam_cases import RANDOM, Run

AUTOCAST = "autocast"  # float32 inputs, under bfloat16 autocast
MODULE_DIMS = 50  # coordinates in which LocalAggregation compares pixels on a GPU


class Case(NamedTuple):
    """One call to measure."""

    source: str = "astronaut"  # a photo of scikit-image or a key of RANDOM
    n: int = 10
    dims: int = 256
    channels: int = 21
    h: int = 96
    w: int = 96
    sigma: float = 6.0
    eps: float = 0.0
    dtype: str = "float32"  # of features and values, or AUTOCAST
    backward: bool = True
    radius: int | None = None

    @property
    def pixels(self) -> int:
        """L, the pixels of the feature map."""
        return self.h * self.w

    def __str__(self) -> str:
        """As in the names of benchmarks."""
        size = f"N {self.n}, D {self.dims}, C {self.channels}, {self.h} x {self.w}"
        what = "forward + backward" if self.backward else "forward"
        settings = f"sigma {self.sigma:g}, eps {self.eps:g}, {self.dtype}"
        if self.radius is not None:
            settings += f", radius {self.radius}"
        return f"{self.source}, {size}, {settings}, {what}"


TRAINING = Case()
MODULE = TRAINING._replace(dims=MODULE_DIMS)
SIXTY_CLASSES = TRAINING._replace(channels=60)
CITYSCAPES = TRAINING._replace(n=1, h=256, w=512)
# Nothing can be left out: scores are almost equal, and the Gaussian is wide.
DENSE = Case("random, |f| 0.8", sigma=96.0, dtype="bfloat16", backward=False)


def both(case: Case) -> tuple[Case, Case]:
    """The forward pass alone, then with the backward pass."""
    return case._replace(backward=False), case


def our_cases() -> list[Case]:
    """All calls on which our kernels are measured."""
    cases = []
    for size in (TRAINING, SIXTY_CLASSES):
        for case in both(size):
            cases += [
                case._replace(dims=MODULE_DIMS),
                case,
                case._replace(dtype=AUTOCAST),
                case._replace(dtype="bfloat16"),
            ]
    for case in both(TRAINING._replace(eps=1e-7)):
        cases += [case._replace(dims=MODULE_DIMS), case]
    cases.append(DENSE)
    for case in both(CITYSCAPES):
        cases += [case._replace(dims=MODULE_DIMS), case, case._replace(eps=1e-7)]
    for size in (*both(TRAINING), CITYSCAPES):
        cases += [size._replace(dtype=dtype, radius=6) for dtype in ("float32", "bfloat16")]
    return cases


@lru_cache(maxsize=2)
def _photo(source: str, dims: int, h: int, w: int) -> Tensor:  # [1, D, h, w]
    """The embedding of a photo, or its coordinates for D = MODULE_DIMS."""
    patches = lam_cases.normalized_photo(source, h, w)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = blpseg_ops.LocalAggregation()
        return module.coordinates(patches) if dims == MODULE_DIMS else module.embed(patches)


def make_inputs(case: Case, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Features, values and the gradient of the output; images are shifted copies of a photo."""
    generator = torch.Generator().manual_seed(0)
    if case.source in RANDOM:
        shape = case.n, case.dims, case.h, case.w
        features = RANDOM[case.source] * torch.randn(shape, generator=generator)
    else:
        one = _photo(case.source, case.dims, case.h, case.w)
        features = torch.cat([one.roll(5 * i, 3) for i in range(case.n)])
    values = torch.randn(case.n, case.channels, case.h, case.w, generator=generator)
    gradient = torch.randn(values.shape, generator=generator)
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
    features, values, gradient = (x.to(device, dtype) for x in (features, values, gradient))
    return (
        features.requires_grad_(case.backward),
        values.requires_grad_(case.backward),
        gradient,
    )


def call(run: Run, case: Case, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """What is timed: the output and, in backward cases, the gradients of features and values."""
    features, values, gradient = inputs
    with torch.autocast("cuda", torch.bfloat16, enabled=case.dtype == AUTOCAST):
        output = run(features, values)
    if not case.backward:
        return (output,)
    grads = torch.autograd.grad(output, (features, values), gradient.to(output.dtype))
    return output.detach(), *grads
