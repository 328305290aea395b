"""What a call costs before there is anything to compute: maps of one pixel.

Beside each op stands what torch itself would run on the same: scaled_dot_product_attention with the
features as query and key; the resizing with cross_entropy, argmax or softmax behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLASSES, SIZE = 21, (1, 1)


class Case(NamedTuple):
    """An op and torch's counterpart; both take the maps, and give what is differentiated."""

    ours: Callable[..., Any]
    torchs: Callable[..., Any]
    channels: tuple[int, ...]  # of the maps
    trained: bool = True
    ready: Callable[..., Any] | None = None  # torch's, of maps that are laid out for it already


def _attention(features: Tensor, values: Tensor) -> Tensor:  # [1, 1, 1, C]
    """Run attention on one pixel [1, C, 1, 1], viewed as one token without a copy."""
    query, value = (maps.view(1, 1, 1, -1) for maps in (features, values))
    return F.scaled_dot_product_attention(query, query, value, scale=1.0)


def _attention_of_tokens(features: Tensor, values: Tensor) -> Tensor:  # [1, 1, 1, C]
    return F.scaled_dot_product_attention(features, features, values, scale=1.0)


def _resized(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear")


TARGET = torch.zeros(1, *SIZE, dtype=torch.int64, device=DEVICE)
PRESENT = torch.ones(1, CLASSES, dtype=torch.bool, device=DEVICE)
BOTH = (CLASSES, CLASSES + 1)


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(_resized(logits), TARGET)


CASES: dict[str, Case] = {
    **{
        f"lam, D {dims}": Case(
            blpseg_ops.lam,
            _attention,
            (dims, dims if dims < 64 else CLASSES),
            ready=_attention_of_tokens,
        )
        for dims in (16, 256)
    },
    "blp_loss": Case(
        lambda seg, annotation: blpseg_ops.blp_loss(seg, annotation.detach(), TARGET),
        lambda seg, annotation: _cross_entropy(seg),
        BOTH,
    ),
    "annotation_loss": Case(
        lambda annotation: blpseg_ops.annotation_loss(annotation, TARGET), _cross_entropy, BOTH[1:]
    ),
    "blp_objective": Case(
        lambda seg, annotation: sum(blpseg_ops.blp_objective(seg, annotation, TARGET)[:2]),
        lambda seg, annotation: _cross_entropy(seg) + _cross_entropy(annotation),
        BOTH,
    ),
    "pseudo_labels": Case(
        lambda seg: blpseg_ops.pseudo_labels(seg, TARGET, PRESENT),
        lambda seg: _resized(seg).softmax(1).max(1),
        BOTH[:1],
        trained=False,
    ),
    "upsample_argmax": Case(
        lambda logits: blpseg_ops.upsample_argmax(logits, SIZE),
        lambda logits: _resized(logits).argmax(1),
        BOTH[:1],
        trained=False,
    ),
}
OURS, TORCH, READY = PEERS = "blpseg_ops", "torch", "torch, maps laid out for it"
STEPS = [
    (name, backward, peer)
    for backward in (False, True)
    for name, case in CASES.items()
    for peer in PEERS
    if (case.trained or not backward) and (case.ready or peer != READY)
]


@pytest.mark.parametrize(("name", "backward", "peer"), STEPS)
@pytest.mark.benchmark(warmup=True, warmup_iterations=100, min_rounds=200)
def test_overhead(benchmark: Any, name: str, backward: bool, peer: str) -> None:
    what = "forward + backward" if backward else "forward, no gradient"
    benchmark.group = f"{name}, 1 pixel, float32, {DEVICE}, {what}"
    benchmark.extra_info.update(op=name, backward=backward, peer=peer, device=DEVICE)
    case = CASES[name]
    function = {OURS: case.ours, TORCH: case.torchs, READY: case.ready}[peer]
    shapes = [(1, 1, 1, c) if peer == READY else (1, c, 1, 1) for c in case.channels]
    maps = [torch.randn(shape, device=DEVICE, requires_grad=backward) for shape in shapes]

    def timed() -> None:
        output = function(*maps)
        if backward:
            torch.autograd.grad(output.sum(), maps, allow_unused=True)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(timed)
