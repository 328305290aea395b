"""The calls of ``lam`` with queries that are measured, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Run = Callable[[Tensor, Tensor, Tensor], Tensor]  # features, values, queries -> output


class Case(NamedTuple):
    """One call to measure."""

    h: int
    w: int
    height: int
    width: int
    d: int
    c: int
    sigma: float = 6.0
    radius: float | None = None
    backward: bool = False

    @property
    def pairs(self) -> int:
        """Number of pairs of keys and queries."""
        return self.h * self.w * self.height * self.width

    def shrunk(self) -> Case:
        """The same on small maps, to try it out."""
        return self._replace(h=6, w=8, height=24, width=32)

    def __str__(self) -> str:
        """As in the names of benchmarks."""
        window = "" if self.radius is None else f", radius {self.radius:g}"
        return (
            f"{self.height} x {self.width} from {self.h} x {self.w}, D {self.d}, C {self.c}, "
            f"sigma {self.sigma:g}{window}, {'forward + backward' if self.backward else 'forward'}"
        )


# Feature upsampling, logits at training size, logits of a street scene.
FEATURES = Case(32, 32, 448, 448, 64, 384)
LOGITS = Case(96, 96, 384, 384, 50, 21)
STREET = Case(256, 512, 1024, 2048, 50, 21)
CASES = (
    FEATURES._replace(radius=3.5),
    FEATURES,
    LOGITS,
    STREET._replace(radius=8.0),
    STREET,
)


def make_inputs(case: Case, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, values, queries and the gradient of the output, drawn on the CPU.

    Queries resemble their neighbors as in photos, with 5 % of noise and a norm of 16, that of the
    model's embedding; a key's features are the mean of the queries that it covers.
    """
    generator = torch.Generator().manual_seed(0)
    cells = (-(-case.h // 8), -(-case.w // 8))
    coarse = torch.randn(1, case.d, *cells, generator=generator)
    queries = F.interpolate(coarse, (case.height, case.width), mode="bilinear")
    queries += 0.05 * torch.randn(queries.shape, generator=generator)
    queries *= 16 / queries.norm(dim=1, keepdim=True)
    features = F.adaptive_avg_pool2d(queries, (case.h, case.w))
    values = torch.randn(1, case.c, case.h, case.w, generator=generator)
    grad_output = torch.ones(1, 1, 1, 1, device=device).expand(1, case.c, case.height, case.width)
    leaves = (x.to(device).requires_grad_(case.backward) for x in (features, values, queries))
    return *leaves, grad_output


def call(run: Run, case: Case, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What is timed: the output and, in backward cases, the gradients."""
    *leaves, grad_output = inputs
    output = run(*leaves)
    if not case.backward:
        return (output,)
    return output.detach(), *torch.autograd.grad(output, leaves, grad_output)
