"""torch.library.opcheck on every operator: schema, fake kernel, autograd, AOT dispatch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import blpseg_ops

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def _maps(channels: int, dtype: torch.dtype, transposed: bool, grad: bool = True) -> Tensor:
    rng = torch.Generator().manual_seed(channels)
    x = torch.randn(2, channels, 3, 5, generator=rng, dtype=torch.float64).to(dtype)
    if transposed:
        x = x.mT.contiguous().mT
    return x.requires_grad_(grad)


def _target() -> Tensor:
    rng = torch.Generator().manual_seed(1)
    target = torch.randint(0, 5, (2, 7, 9), generator=rng)
    return target.where(target < 4, 255)


def _arguments(op: str, dtype: torch.dtype, transposed: bool) -> tuple[Any, ...]:
    def maps(channels: int, grad: bool = True) -> Tensor:
        return _maps(channels, dtype, transposed, grad)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    one = torch.ones((), dtype=wide)
    match op:
        case "lam":
            return maps(4), maps(2), 2.0, 1e-7, 0.5, None
        case "lam, in a window":
            return maps(4), maps(2), 2.0, 1e-7, 0.5, 1
        case "lam_backward":
            forward = torch.ops.blpseg.lam(maps(4, False), maps(2, False), 2.0, 1e-7, 0.5)
            return maps(2, False), maps(4, False), maps(2, False), *forward, 2.0, 1e-7, 0.5, None
        case "blp_loss":
            return maps(3), maps(4, False), _target(), 2.0, 255
        case "blp_loss_backward":
            weights = torch.ones(2, dtype=wide)
            return one, maps(3, False), maps(4, False), _target(), weights, 2.0, 255
        case "annotation_loss":
            return maps(4), _target(), 0.02, 255
        case "annotation_loss_backward":
            return one, maps(4, False), _target(), one, 0.02, 255
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
            return one, one, *tensors, 2.0, 0.02, 255
        case "upsample_argmax":
            return maps(3, False), [7, 9]
    raise AssertionError(op)


OPS = (
    "lam",
    "lam_backward",
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


@pytest.mark.parametrize("op", [*OPS, "lam, in a window", "blp_objective, no pseudo labels"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["contiguous", "transposed"])
def test_opcheck(op: str, dtype: torch.dtype, transposed: bool) -> None:
    packet = getattr(torch.ops.blpseg, op.partition(",")[0]).default
    result = opcheck(packet, _arguments(op, dtype, transposed))
    assert set(result.values()) == {"SUCCESS"}


def test_compiles_into_one_graph() -> None:
    def step(f: Tensor, v: Tensor, target: Tensor) -> Tensor:
        seg = blpseg_ops.lam(f, v)
        present = torch.ones(len(v), v.shape[1], dtype=torch.bool)
        pseudo = blpseg_ops.pseudo_labels(seg, target, present)
        annotation = torch.cat([v, v[:, :1]], 1)
        labels = blpseg_ops.upsample_argmax(seg, target.shape[1:])
        return (
            blpseg_ops.blp_loss(seg, annotation.detach(), pseudo)
            + blpseg_ops.annotation_loss(annotation, target)
            + labels.float().mean()
        )

    arguments = (
        _maps(4, torch.float32, False, False),
        _maps(3, torch.float32, False, False),
        _target(),
    )
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*arguments), step(*arguments))


@pytest.mark.parametrize("self_training", [False, True])
def test_the_objective_compiles_into_one_graph(self_training: bool) -> None:
    def losses(seg: Tensor, annotation: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        present = torch.ones(seg.shape[:2], dtype=torch.bool) if self_training else None
        objective = blpseg_ops.blp_objective(
            seg, annotation, target, class_present=present, threshold=0.5
        )
        assert (objective.pseudo_labels is not None) == self_training
        return objective.blp_loss, objective.annotation_loss

    logits = _maps(3, torch.float32, False), _maps(4, torch.float32, False)
    compiled = torch.compile(losses, backend="aot_eager", fullgraph=True)
    with blpseg_ops.checked_targets():  # of which a compiled graph takes no notice
        results = compiled(*logits, _target())
    expected = losses(*logits, _target())
    torch.testing.assert_close(results, expected)
    grads = torch.autograd.grad(sum(results), logits)
    torch.testing.assert_close(grads, torch.autograd.grad(sum(expected), logits))
