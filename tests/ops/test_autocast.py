"""Autocast on the CPU: ops widen bfloat16 and float16 to float32 unless a region disables it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import blpseg_ops
from blpseg_ops import BLPLoss, LocalAggregation

from ._common import randn

K = 3
TARGET = torch.randint(0, K + 1, (2, 9, 11), generator=torch.Generator().manual_seed(0))
IMAGES = randn(2, 3, 16, 20, seed=9).float()
AGGREGATION, LOSS = LocalAggregation(dim=8, sigma=1.5), BLPLoss()
OPS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "lam": (lambda f, v: blpseg_ops.lam(f, v, 1.5), (5, K)),
    "blp_loss": (lambda s, a: blpseg_ops.blp_loss(s, a.detach(), TARGET), (K, K + 1)),
    "annotation_loss": (lambda a: blpseg_ops.annotation_loss(a, TARGET), (K + 1,)),
    "blp_objective": (
        lambda s, a: sum(blpseg_ops.blp_objective(s, a, TARGET)[:2]),
        (K, K + 1),
    ),
    "LocalAggregation": (lambda v: AGGREGATION(IMAGES, v), (K,)),
    "BLPLoss": (lambda s, a: LOSS(s, a.detach(), TARGET), (K, K + 1)),
}
every_op = pytest.mark.parametrize("name", OPS)


def _maps(name: str, dtype: torch.dtype) -> list[Tensor]:
    return [randn(2, c, 4, 5, seed=c).to(dtype).requires_grad_() for c in OPS[name][1]]


@every_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_maps_are_taken_in_float32(name: str, dtype: torch.dtype) -> None:
    function, maps = OPS[name][0], _maps(name, dtype)
    with torch.autocast("cpu", torch.bfloat16):
        output = function(*maps)
    expected = function(*(x.float() for x in maps))
    assert output.dtype == torch.float32
    assert torch.equal(output, expected)
    grads = torch.autograd.grad(output.sum(), maps, allow_unused=True)
    assert {grad.dtype for grad in grads if grad is not None} == {dtype}


@every_op
def test_a_disabled_region_leaves_dtypes_alone(name: str) -> None:
    function, maps = OPS[name][0], _maps(name, torch.bfloat16)
    if name == "LocalAggregation":  # its embedding is float32, so the logits must be, too
        maps = _maps(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        inner = function(*maps)
    plain = function(*maps)
    assert inner.dtype == plain.dtype
    assert torch.equal(inner, plain)


@pytest.mark.parametrize("name", ["lam", "blp_loss", "annotation_loss", "blp_objective"])
def test_float64_stays(name: str) -> None:
    function, maps = OPS[name][0], _maps(name, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(*maps), function(*maps).double())


def test_float64_is_not_mixed_with_less() -> None:
    features, values = randn(1, 2, 3, 3), randn(1, 2, 3, 3).bfloat16()
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(TypeError, match=r"values must have the dtype of features, torch\.float64"),
    ):
        blpseg_ops.lam(features, values)
