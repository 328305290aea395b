"""torch.library.opcheck on every operator: schema, fake kernel, autograd, AOT dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from ._common import LAYOUTS

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
OTHERS = ("transposed", "channels_last", "one channel for all")


def _maps(channels: int, dtype: torch.dtype, layout: str, grad: bool) -> Tensor:
    rng = torch.Generator().manual_seed(channels)
    x = torch.randn(2, channels, 3, 5, generator=rng, dtype=torch.float64).to(dtype)
    lay_out = LAYOUTS.get(layout, Tensor.contiguous)
    return lay_out(x).requires_grad_(grad)


def _queries(maps: Tensor) -> Tensor:  # [N, D, 3, 5] -> [N, D, 6, 4]
    queries = torch.cat([maps, maps.flip(2)], 2)[..., :4]
    return queries.detach().requires_grad_(maps.requires_grad)


def _inv(dtype: torch.dtype, grad: bool) -> Tensor:  # inv_two_sigma_sq
    return torch.tensor([0.1, 0.3], dtype=dtype, requires_grad=grad)


def _target() -> Tensor:
    rng = torch.Generator().manual_seed(1)
    target = torch.randint(0, 5, (2, 7, 9), generator=rng)
    return target.where(target < 4, 255)


def _arguments(op: str, dtype: torch.dtype, layout: str, grads: bool = True) -> tuple[Any, ...]:
    def maps(channels: int, grad: bool = True) -> Tensor:
        return _maps(channels, dtype, layout, grad and grads)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    one = torch.ones((), dtype=wide)
    none = torch.ones(0, dtype=wide)  # saved_pixels
    match op:
        case "lam":
            return maps(4), maps(2), 2.0, 1e-7, 0.5, None
        case "lam, in a window":
            return maps(4), maps(2), 2.0, 1e-7, 0.5, 1
        case "lam_backward":
            forward = torch.ops.blpseg.lam(maps(4, False), maps(2, False), 2.0, 1e-7, 0.5)
            return maps(2, False), maps(4, False), maps(2, False), *forward, 2.0, 1e-7, 0.5, None
        case "lam_two_grids" | "lam_two_grids, in a window":
            radius = 1.5 if "window" in op else None
            return _queries(maps(4)), maps(4), maps(2), _inv(wide, grads), 1e-7, 0.5, radius
        case "lam_two_grids_backward":
            inputs = _queries(maps(4, False)), maps(4, False), maps(2, False)
            inv = _inv(wide, False)
            forward = torch.ops.blpseg.lam_two_grids(*inputs, inv, 1e-7, 0.5)
            return torch.ones_like(forward[0]), *inputs, *forward, inv, 1e-7, 0.5, None
        case "blp_loss":
            return maps(3), maps(4, False), _target(), 2.0, 255
        case "blp_loss_backward":
            weights = torch.ones(2, dtype=wide)
            return one, maps(3, False), maps(4, False), _target(), weights, none, 2.0, 255
        case "annotation_loss":
            return maps(4), _target(), 0.02, 255
        case "annotation_loss_backward":
            return one, maps(4, False), _target(), one, none, 0.02, 255
        case "pseudo_labels":
            present = torch.ones(2, 3, dtype=torch.bool)
            return maps(3, False), _target(), present, 0.9, 255
        case "blp_objective":
            present = torch.ones(2, 3, dtype=torch.bool)
            return maps(3), maps(4), _target(), present, 2.0, 0.02, 0.5, 255
        case "blp_objective, no pseudo labels":
            return maps(3), maps(4), _target(), None, 2.0, 0.02, 0.5, 255
        case "blp_objective_backward":
            tensors = (
                maps(3, False),
                maps(4, False),
                _target(),
                _target(),
                torch.ones(2, dtype=wide),
                one,
            )
            return one, one, *tensors, none, none, 2.0, 0.02, 255
        case "upsample_argmax":
            return maps(3, False), [7, 9]
    raise AssertionError(op)


OPS = (
    "lam",
    "lam_backward",
    "lam_two_grids",
    "lam_two_grids_backward",
    "blp_loss",
    "blp_loss_backward",
    "annotation_loss",
    "annotation_loss_backward",
    "pseudo_labels",
    "blp_objective",
    "blp_objective_backward",
    "upsample_argmax",
)


def test_every_operator_is_checked() -> None:
    defined = {
        schema.name.removeprefix("blpseg::")
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("blpseg::")
    }
    assert defined == set(OPS)


every_op = pytest.mark.parametrize(
    "op",
    [
        *OPS,
        "lam, in a window",
        "lam_two_grids, in a window",
        "blp_objective, no pseudo labels",
    ],
)


@every_op
@pytest.mark.parametrize(
    ("dtype", "layout"),
    [*((dtype, "contiguous") for dtype in DTYPES), *((torch.float32, name) for name in OTHERS)],
    ids=str,
)
def test_opcheck(op: str, dtype: torch.dtype, layout: str) -> None:
    _check(op, _arguments(op, dtype, layout))


@every_op
def test_opcheck_without_gradients(op: str) -> None:
    _check(op, _arguments(op, torch.float32, "contiguous", grads=False))


def _check(op: str, arguments: tuple[Any, ...]) -> None:
    operator = getattr(torch.ops.blpseg, op.partition(",")[0]).default
    assert set(opcheck(operator, arguments).values()) == {"SUCCESS"}
