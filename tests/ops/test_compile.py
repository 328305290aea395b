"""torch.compile: one graph, forward and backward, for any batch size, with eager results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

import blpseg_ops
from blpseg_ops import BLPLoss, LocalAggregation

from ._common import LAYOUTS, TORCH, randn

K = 3
Inputs = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _forget_compiled_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _inputs(n: int = 2, h: int = 5, w: int = 6) -> Inputs:
    """Return maps of a batch; images and labels are 4 times as large.

    Unrelated axes have different sizes, since torch.compile assumes that equal sizes stay equal.
    """
    rng = torch.Generator().manual_seed(n)
    target = torch.randint(0, K + 2, (n, 4 * h, 4 * w), generator=rng)
    return {
        "features": randn(n, 11, h, w, seed=1).float(),
        "seg": randn(n, K, h, w, seed=2).float(),
        "annotation": randn(n, K + 1, h, w, seed=3).float(),
        "target": target.where(target <= K, 255),
        "present": torch.rand(n, K, generator=rng) < 0.7,
        "images": randn(n, 3, 4 * h, 4 * w, seed=4).float(),
    }


def _objective(x: Inputs, **options: Any) -> Tensor:
    blp, annotated, labels = blpseg_ops.blp_objective(
        x["seg"], x["annotation"], x["target"], **options
    )
    assert (labels is None) == (not options)
    return 1.7 * blp + 0.3 * annotated + (0 if labels is None else labels.float().mean())


def _labels(x: Inputs) -> Tensor:
    """Run both ops without a gradient; pseudo labels are the target of an op with one."""
    seg, target = x["seg"], x["target"]
    predicted = blpseg_ops.upsample_argmax(seg, target.shape[1:])
    pseudo = blpseg_ops.pseudo_labels(seg, target, x["present"], threshold=0.4)
    return blpseg_ops.annotation_loss(x["annotation"], pseudo) + predicted.float().mean()


def _step(x: Inputs) -> Tensor:
    """Run a whole training step."""
    seg = blpseg_ops.lam(x["features"], x["seg"])
    return _objective({**x, "seg": seg}, class_present=x["present"], threshold=0.4)


AGGREGATION = LocalAggregation(dim=8, sigma=1.5, eps=1e-3)
LOSS = BLPLoss(gamma=1.5)
FUNCTIONS: dict[str, Callable[[Inputs], Tensor]] = {
    "lam": lambda x: blpseg_ops.lam(x["features"], x["seg"], 1.5, eps=0.1).square().sum(),
    "lam, in a window": lambda x: blpseg_ops.lam(x["features"], x["seg"], radius=1).square().sum(),
    "blp_loss": lambda x: blpseg_ops.blp_loss(x["seg"], x["annotation"].detach(), x["target"]),
    "annotation_loss": lambda x: blpseg_ops.annotation_loss(x["annotation"], x["target"]),
    "labels": _labels,
    "blp_objective": _objective,
    "a step": _step,
    "LocalAggregation": lambda x: AGGREGATION(x["images"], x["seg"]).square().sum(),
    "BLPLoss": lambda x: LOSS(x["seg"], x["annotation"].detach(), x["target"]),
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
# These call every op.
WHOLE = {name: FUNCTIONS[name] for name in ("lam, in a window", "labels", "a step")}
whole_functions = pytest.mark.parametrize("function", WHOLE.values(), ids=WHOLE)


def _compiled(function: Callable[[Inputs], Tensor], **options: Any) -> Callable[[Inputs], Tensor]:
    """Compile into one graph or raise; aot_eager saves the seconds that inductor takes."""
    return torch.compile(function, backend="aot_eager", fullgraph=True, **options)


def _run(
    function: Callable[[Inputs], Tensor], inputs: Inputs, mark_dynamic: bool = False
) -> dict[str, Tensor]:
    """Return the result and the gradients of inputs and parameters."""
    maps = {name: x for name, x in inputs.items() if x.is_floating_point() and name != "images"}
    leaves = {name: x.detach().requires_grad_() for name, x in maps.items()}
    parameters = dict(AGGREGATION.named_parameters())
    arguments = {**inputs, **leaves}
    for x in arguments.values() if mark_dynamic else ():
        torch._dynamo.mark_dynamic(x, 0)
    output = function(arguments)
    wanted = {**leaves, **parameters}
    grads = torch.autograd.grad(output, list(wanted.values()), allow_unused=True)
    results = zip(wanted, grads, strict=True)
    return {"output": output.detach(), **{k: grad for k, grad in results if grad is not None}}


def _assert_same(function: Callable[[Inputs], Tensor], compiled: Any, inputs: Inputs) -> None:
    results, expected = _run(compiled, inputs), _run(function, inputs)
    torch.testing.assert_close(results, expected)
    for name, result in results.items():
        assert result.stride() == expected[name].stride(), name


@every_function
@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
def test_one_graph(function: Callable[[Inputs], Tensor], autocast: bool) -> None:
    if autocast and TORCH < (2, 13):
        pytest.skip("older compilers do not widen lam's inputs under autocast; see docs/ops.md")
    inputs = _inputs()
    if autocast:
        inputs = {k: x.bfloat16() if x.is_floating_point() else x for k, x in inputs.items()}
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        _assert_same(function, _compiled(function), inputs)


@every_function
def test_without_gradients(function: Callable[[Inputs], Tensor]) -> None:
    inputs = _inputs()
    with torch.no_grad():
        torch.testing.assert_close(_compiled(function)(inputs), function(inputs))


@every_function
def test_channels_last(function: Callable[[Inputs], Tensor]) -> None:
    change = LAYOUTS["channels_last"]
    inputs = {k: change(x) if x.dim() == 4 else x for k, x in _inputs().items()}
    _assert_same(function, _compiled(function), inputs)


@every_function
def test_no_recompilation_for_a_new_batch_size(function: Callable[[Inputs], Tensor]) -> None:
    _assert_compiled_once(function, mark=False)


@whole_functions
def test_mark_dynamic(function: Callable[[Inputs], Tensor]) -> None:
    _assert_compiled_once(function, mark=True)


def _assert_compiled_once(function: Callable[[Inputs], Tensor], mark: bool) -> None:
    compiled = _compiled(function)
    for n in (2,) if mark else (2, 8):
        _run(compiled, _inputs(n), mark)
    with torch.compiler.set_stance("fail_on_recompile"):
        for n in (5, 4):
            _assert_same(function, compiled, _inputs(n))


@whole_functions
def test_no_recompilation_for_another_image_size(function: Callable[[Inputs], Tensor]) -> None:
    compiled = _compiled(function, dynamic=True)
    _run(compiled, _inputs(2, 5, 6))
    with torch.compiler.set_stance("fail_on_recompile"):
        for n, h, w in ((3, 8, 9), (2, 12, 7)):
            _assert_same(function, compiled, _inputs(n, h, w))


def test_checked_targets_are_left_out_of_graphs() -> None:
    inputs = _inputs()
    with blpseg_ops.checked_targets():
        result = _compiled(_objective)(inputs)
    torch.testing.assert_close(result, _objective(inputs))


@pytest.mark.parametrize("name", ["lam", "blp_loss", "annotation_loss", "blp_objective"])
def test_second_derivatives_are_refused(name: str) -> None:
    inputs = {k: x.requires_grad_() if x.dim() == 4 else x for k, x in _inputs().items()}
    output = _compiled(FUNCTIONS[name])(inputs)
    wanted = inputs["annotation" if name == "annotation_loss" else "seg"]
    with pytest.raises(RuntimeError, match="differentiated once|double backward"):
        (grad,) = torch.autograd.grad(output, wanted, create_graph=True)
        grad.sum().backward()
