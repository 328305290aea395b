"""torch.func's transforms, torch.vmap, and derivatives that the ops refuse."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import blpseg_ops
from blpseg_ops import LocalAggregation

from ._common import LAYOUTS, randn

BATCH, N, K, LOW, HIGH = 3, 2, 3, (4, 5), (9, 11)


class Op(NamedTuple):
    """A differentiable op as a function of its maps; its other inputs are fixed."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]  # [BATCH, N, ...], all differentiated


def _target() -> Tensor:  # [BATCH, N, H, W]
    target = torch.randint(0, K + 2, (BATCH, N, *HIGH), generator=torch.Generator().manual_seed(0))
    return target.where(target <= K, 255)


def _objective(seg: Tensor, annotation: Tensor, target: Tensor, **options: Any) -> Tensor:
    blp, annotated, _ = blpseg_ops.blp_objective(seg, annotation, target, **options)
    return 1.7 * blp - 0.3 * annotated


TARGET = _target()
MAPS = {c: randn(BATCH, N, c, *LOW, seed=c) for c in (K, K + 1)}
PRESENT = torch.rand(BATCH, N, K, generator=torch.Generator().manual_seed(1)) < 0.7
SELF_TRAINING = {"class_present": PRESENT[0], "threshold": 0.4}
OPS: dict[str, Op] = {
    "lam": Op(
        lambda f, v: (blpseg_ops.lam(f, v, 1.5, eps=0.1) * v).square().sum(), tuple(MAPS.values())
    ),
    "lam of itself": Op(lambda x: blpseg_ops.lam(x, x, 1.5).square().sum(), (MAPS[K],)),
    "blp_loss": Op(
        lambda seg: blpseg_ops.blp_loss(seg, MAPS[K + 1][0].to(seg.dtype), TARGET[0]), (MAPS[K],)
    ),
    "annotation_loss": Op(
        lambda annotation: blpseg_ops.annotation_loss(annotation, TARGET[0]), (MAPS[K + 1],)
    ),
    "blp_objective": Op(partial(_objective, target=TARGET[0]), tuple(MAPS.values())),
    "blp_objective, self-training": Op(
        partial(_objective, target=TARGET[0], **SELF_TRAINING), tuple(MAPS.values())
    ),
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def _one_by_one(function: Callable[..., Any], *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return what vmap must equal: a loop over the entries."""
    rows = [function(*entry) for entry in zip(*inputs, strict=True)]
    if isinstance(rows[0], Tensor):
        return (torch.stack(rows),)
    return tuple(map(torch.stack, zip(*rows, strict=True)))


def _by_autograd(op: Op, *inputs: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(op.function(*leaves), leaves)


def _all(op: Op) -> tuple[int, ...]:
    return tuple(range(len(op.inputs)))


@every_op
def test_grad(op: Op) -> None:
    inputs = [x[0] for x in op.inputs]
    torch.testing.assert_close(grad(op.function, _all(op))(*inputs), _by_autograd(op, *inputs))


@every_op
def test_vmap(op: Op) -> None:
    (expected,) = _one_by_one(op.function, *op.inputs)
    torch.testing.assert_close(vmap(op.function)(*op.inputs), expected)


@every_op
def test_gradients_of_each_entry(op: Op) -> None:
    expected = _one_by_one(partial(_by_autograd, op), *op.inputs)
    results = vmap(grad(op.function, _all(op)))(*op.inputs)
    torch.testing.assert_close(results, expected)


@every_op
def test_gradient_of_a_vmap(op: Op) -> None:
    expected = _one_by_one(partial(_by_autograd, op), *op.inputs)
    results = grad(lambda *x: vmap(op.function)(*x).sum(), _all(op))(*op.inputs)
    torch.testing.assert_close(results, expected)
    leaves = [x.clone().requires_grad_() for x in op.inputs]
    results = torch.autograd.grad(vmap(op.function)(*leaves).sum(), leaves)
    torch.testing.assert_close(results, expected)


def test_jacobian() -> None:
    def function(f: Tensor, v: Tensor) -> Tensor:
        return blpseg_ops.lam(f, v, 1.5, eps=0.1)

    inputs = MAPS[K][0], MAPS[K + 1][0]
    expected = torch.autograd.functional.jacobian(
        partial(blpseg_ops.lam, sigma=1.5, eps=0.1, backend="reference"), inputs
    )
    torch.testing.assert_close(jacrev(function, (0, 1))(*inputs), expected)
    pulled = vjp(function, *inputs)[1](inputs[1])
    leaves = [x.clone().requires_grad_() for x in inputs]
    wanted = torch.autograd.grad(function(*leaves), leaves, inputs[1])
    torch.testing.assert_close(pulled, wanted)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (2, 1), (-1, 3)], ids=str)
@pytest.mark.parametrize("layout", ["transposed", "channels_last", "one channel for all"])
def test_vmap_over_any_axis(axes: tuple[int | None, int | None], layout: str) -> None:
    function = partial(blpseg_ops.lam, sigma=1.5)
    laid_out = [torch.stack(list(map(LAYOUTS[layout], x))) for x in MAPS.values()]
    mapped = [
        x[0] if axis is None else x.movedim(0, axis) for x, axis in zip(laid_out, axes, strict=True)
    ]
    same = [
        x[:1].expand(x.shape) if axis is None else x for x, axis in zip(laid_out, axes, strict=True)
    ]
    (expected,) = _one_by_one(function, *same)
    torch.testing.assert_close(vmap(function, axes)(*mapped), expected)


def test_vmap_of_a_vmap() -> None:
    f, v = (x[:, :, None] for x in MAPS.values())
    function = partial(blpseg_ops.lam, sigma=1.5)
    (expected,) = _one_by_one(partial(_one_by_one, function), f, v)[0:1]
    torch.testing.assert_close(vmap(vmap(function))(f, v), expected)


LABELS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "pseudo_labels": (
        partial(blpseg_ops.pseudo_labels, threshold=0.4),
        (MAPS[K], TARGET, PRESENT),
    ),
    "upsample_argmax": (partial(blpseg_ops.upsample_argmax, size=HIGH), (MAPS[K],)),
    "labels of blp_objective": (
        lambda *x: blpseg_ops.blp_objective(*x[:3], class_present=x[3], threshold=0.4)[2],
        (*MAPS.values(), TARGET, PRESENT),
    ),
    "blp_loss": (blpseg_ops.blp_loss, (*MAPS.values(), TARGET)),
    "annotation_loss": (blpseg_ops.annotation_loss, (MAPS[K + 1], TARGET)),
}


@pytest.mark.parametrize("name", LABELS)
def test_vmap_over_targets_too(name: str) -> None:
    function, inputs = LABELS[name]
    (expected,) = _one_by_one(function, *inputs)
    torch.testing.assert_close(vmap(function)(*inputs), expected)


@pytest.mark.parametrize("name", ["pseudo_labels", "upsample_argmax"])
def test_labels_are_constants_of_a_gradient(name: str) -> None:
    function, (seg, *others) = LABELS[name]

    def weighed(x: Tensor) -> Tensor:
        return (function(x, *(other[0] for other in others)) * x.sum()).sum()

    count = function(seg[0], *(other[0] for other in others)).sum()
    torch.testing.assert_close(grad(weighed)(seg[0]), count.double().expand(seg[0].shape))


def test_gradients_of_each_image_for_a_module() -> None:
    module = LocalAggregation(dim=8, sigma=1.5, eps=1e-3).double()
    parameters = {name: x.detach() for name, x in module.named_parameters()}
    images, logits = randn(BATCH, 3, 11, 13), randn(BATCH, K, 3, 4)

    def loss(parameters: dict[str, Tensor], image: Tensor, logit: Tensor) -> Tensor:
        output = functional_call(module, parameters, (image[None], logit[None]))
        return output.square().sum()

    results = vmap(grad(loss), (None, 0, 0))(parameters, images, logits)
    for i in range(BATCH):
        output = module(images[i : i + 1], logits[i : i + 1])
        expected = torch.autograd.grad(output.square().sum(), list(module.parameters()))
        for (name, result), wanted in zip(results.items(), expected, strict=True):
            torch.testing.assert_close(result[i], wanted, msg=name)


@every_op
def test_autocast_widens_under_transforms_too(op: Op) -> None:
    narrow = [x.bfloat16() for x in op.inputs]
    with torch.autocast("cpu", torch.bfloat16):
        results = vmap(grad(op.function, _all(op)))(*narrow)
        expected = _one_by_one(partial(_by_autograd, op), *narrow)
    assert all(x.dtype == torch.bfloat16 for x in results)
    torch.testing.assert_close(results, expected)


@every_op
def test_nothing_to_map_over(op: Op) -> None:
    none = [x[:0] for x in op.inputs]
    if op in (OPS["lam"], OPS["lam of itself"]):
        assert vmap(op.function)(*none).shape == (0,)
    else:
        with pytest.raises(ValueError, match="needs at least one entry to map over, got 0"):
            vmap(op.function)(*none)


def test_a_wrong_target_is_named_under_vmap() -> None:
    target = TARGET.clone()
    target[1, 0, 2, 3] = 77
    with pytest.raises(ValueError, match="blp_loss: target must hold .*, got 77"):
        vmap(blpseg_ops.blp_loss)(*MAPS.values(), target)


def _dual(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return function(forward_ad.make_dual(x, torch.ones_like(x)))


FORWARD_MODE: dict[str, Callable[[Callable[..., Tensor], Tensor], Any]] = {
    "jvp": lambda function, x: jvp(function, (x,), (x,)),
    "jacfwd": lambda function, x: jacfwd(function)(x),
    "hessian": lambda function, x: hessian(function)(x),
    "forward_ad": _dual,
}
TWICE: dict[str, Callable[[Callable[..., Tensor], Tensor], Any]] = {
    "grad of grad": lambda function, x: grad(lambda y: grad(function)(y).sum())(x),
    "jacrev of jacrev": lambda function, x: jacrev(jacrev(function))(x),
    "autograd's hessian": lambda function, x: torch.autograd.functional.hessian(function, x),
}


def _of_first(op: Op) -> tuple[Callable[..., Tensor], Tensor]:
    first, *others = (x[0] for x in op.inputs)
    return lambda x: op.function(x, *others), first


@every_op
@pytest.mark.parametrize("how", FORWARD_MODE)
def test_forward_mode_is_refused(op: Op, how: str) -> None:
    with pytest.raises(RuntimeError, match=r"(lam|_loss|objective) has no forward-mode derivative"):
        FORWARD_MODE[how](*_of_first(op))


@every_op
@pytest.mark.parametrize("how", TWICE)
def test_second_derivatives_are_refused(op: Op, how: str) -> None:
    with pytest.raises(RuntimeError, match=r"(lam|_loss|objective) can be differentiated once; b"):
        TWICE[how](*_of_first(op))


def test_the_reference_supports_both() -> None:
    x = MAPS[K][0]

    def function(x: Tensor) -> Tensor:
        return blpseg_ops.lam(x, x, 1.5, backend="reference").square().sum()

    expected = torch.autograd.functional.hessian(function, x)
    torch.testing.assert_close(hessian(function)(x), expected)
    torch.testing.assert_close(_dual(function, x).detach(), function(x))


def test_operators_past_the_public_functions_say_so() -> None:
    with pytest.raises(RuntimeError, match="functorch transforms"):
        grad(lambda x: torch.ops.blpseg.lam(x, x, 1.0, 0.0, 1.0)[0].sum())(MAPS[K][0])
