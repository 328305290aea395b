"""Memory layouts of inputs and results: views, aliases, empty batches.

A result shaped like an input has the strides of torch.empty_like(input). The tests of the kernels
compare values for every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

import blpseg_ops
from blpseg_ops import LocalAggregation, backends

from ._common import LAYOUTS, randn

N, D, K, LOW, HIGH = 2, 5, 3, (4, 5), (9, 11)
TARGET = torch.randint(0, K + 1, (N, *HIGH), generator=torch.Generator().manual_seed(0))
PRESENT = torch.rand(N, K, generator=torch.Generator().manual_seed(1)) < 0.7


class Op(NamedTuple):
    """A public function as a function of maps, target and class_present."""

    run: Callable[..., Any]  # (*maps, target, class_present, backend=)
    channels: tuple[int, ...]  # per map
    trained: tuple[int, ...]  # indices of the maps that get a gradient


OPS: dict[str, Op] = {
    "lam": Op(
        lambda f, v, t, p, **options: blpseg_ops.lam(f, v, 1.5, eps=0.1, **options), (D, K), (0, 1)
    ),
    "lam, in a window": Op(
        lambda f, v, t, p, **options: blpseg_ops.lam(f, v, 1.5, radius=1, **options), (D, K), (0, 1)
    ),
    "blp_loss": Op(
        lambda s, a, t, p, **options: blpseg_ops.blp_loss(s, a, t, **options), (K, K + 1), (0,)
    ),
    "annotation_loss": Op(
        lambda a, t, p, **options: blpseg_ops.annotation_loss(a, t, **options), (K + 1,), (0,)
    ),
    "blp_objective": Op(
        lambda s, a, t, p, **options: sum(
            blpseg_ops.blp_objective(s, a, t, class_present=p, threshold=0.4, **options)[:2]
        ),
        (K, K + 1),
        (0, 1),
    ),
    "pseudo_labels": Op(
        lambda s, t, p, **options: blpseg_ops.pseudo_labels(s, t, p, threshold=0.4, **options),
        (K,),
        (),
    ),
    "upsample_argmax": Op(
        lambda s, t, p, **options: blpseg_ops.upsample_argmax(s, HIGH, **options), (K,), ()
    ),
}
every_op = pytest.mark.parametrize("op", OPS.values(), ids=OPS)
differentiable = pytest.mark.parametrize(
    "op", [op for op in OPS.values() if op.trained], ids=[k for k, op in OPS.items() if op.trained]
)
every_backend = pytest.mark.parametrize("backend", backends.available("lam", "cpu"))
every_layout = pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])


def _maps(op: Op, layout: str = "contiguous", n: int = N) -> list[Tensor]:
    maps = [randn(n, channels, *LOW, seed=channels) for channels in op.channels]
    return maps if layout == "contiguous" else list(map(LAYOUTS[layout], maps))


def _gradients(op: Op, maps: Sequence[Tensor], **options: Any) -> tuple[Tensor, ...]:
    output = op.run(*maps, TARGET, PRESENT, **options)
    return torch.autograd.grad(output, [maps[i] for i in op.trained], output + 1)


@every_layout
@every_backend
@pytest.mark.parametrize("name", ["lam", "lam, in a window"])
def test_lam_output_is_laid_out_as_values(name: str, layout: str, backend: str) -> None:
    features, values = _maps(OPS[name], layout)
    output = OPS[name].run(features, values, None, None, backend=backend)
    assert output.stride() == torch.empty_like(values).stride()


@every_layout
@differentiable
@pytest.mark.parametrize("fake", [False, True], ids=["kernel", "fake kernel"])
def test_gradients_are_laid_out_as_inputs(op: Op, layout: str, fake: bool) -> None:
    maps = _maps(op, layout)
    expected = [torch.empty_like(maps[i]).stride() for i in op.trained]
    if fake:
        with FakeTensorMode() as mode:
            maps = list(map(mode.from_tensor, maps))
            target, present = mode.from_tensor(TARGET), mode.from_tensor(PRESENT)
            for x in maps:
                x.requires_grad_()
            output = op.run(*maps, target, present)
            grads = torch.autograd.grad(output.sum(), [maps[i] for i in op.trained])
    else:
        grads = _gradients(op, [x.requires_grad_() for x in maps])
    assert [grad.stride() for grad in grads] == expected


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "channels_last", "reversed order"])
@differentiable
def test_the_references_gradients_are_laid_out_as_inputs(op: Op, layout: str) -> None:
    """Autograd gives the gradient of a leaf the layout of the leaf."""
    maps = _maps(op, layout)
    leaves = [x.detach().requires_grad_() for x in maps]
    op.run(*leaves, TARGET, PRESENT, backend="reference").sum().backward()
    for i in op.trained:
        assert leaves[i].grad.stride() == maps[i].stride()


def test_a_channels_last_model_stays_so() -> None:
    module = LocalAggregation(dim=8, sigma=1.5)
    head = nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.Conv2d(6, K, 1))
    images = torch.randn(2, 3, 32, 32)
    expected = module(images, head(images))
    for part in (module, head):
        part.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    logits = head(images)
    output = module(images, logits)
    (grad,) = torch.autograd.grad(output.square().sum(), logits)
    for maps in (logits, output, grad):
        assert maps.is_contiguous(memory_format=torch.channels_last)
        assert not maps.is_contiguous()
    torch.testing.assert_close(output, expected)


def _offset(x: Tensor) -> Tensor:
    return torch.cat([x.flatten().new_full((7,), torch.nan), x.flatten()])[7:].view(x.shape)


def _overlapping(x: Tensor) -> Tensor:  # rows share all but one of their pixels
    n, c, h, w = x.shape
    return (
        x.flatten()[: n * c * (h + w)].contiguous().as_strided(x.shape, (c * (h + w), h + w, 1, 1))
    )


VIEWS = {"storage offset": _offset, "overlapping memory": _overlapping}


@every_op
@every_backend
@pytest.mark.parametrize("view", VIEWS)
def test_views(op: Op, view: str, backend: str) -> None:
    views = list(map(VIEWS[view], _maps(op)))
    result, expected = (
        op.run(*maps, TARGET, PRESENT, backend=backend)
        for maps in (views, [x.clone().contiguous() for x in views])
    )
    torch.testing.assert_close(result, expected)


@differentiable
@every_backend
@pytest.mark.parametrize("view", [*VIEWS, "expanded"])
def test_gradients_through_views(op: Op, view: str, backend: str) -> None:
    """Autograd adds the op's gradients of all elements of a view that share memory."""
    function = VIEWS.get(view, lambda x: x[:1, :, :, :1].expand(N, -1, -1, LOW[1]))
    maps = [x.requires_grad_() for x in _maps(op)]
    views = list(map(function, maps))
    output = op.run(*views, TARGET, PRESENT, backend=backend)
    results = torch.autograd.grad(output.sum(), [maps[i] for i in op.trained])
    leaves = [x.detach().clone().contiguous().requires_grad_() for x in views]
    output = op.run(*leaves, TARGET, PRESENT, backend=backend)
    of_views = torch.autograd.grad(output.sum(), [leaves[i] for i in op.trained])
    again = list(map(function, maps))
    expected = torch.autograd.grad(
        [again[i] for i in op.trained], [maps[i] for i in op.trained], of_views
    )
    torch.testing.assert_close(results, expected)


@every_backend
def test_inputs_that_are_one_tensor(backend: str) -> None:
    lam = partial(blpseg_ops.lam, sigma=1.5, backend=backend)
    x = randn(N, K, *LOW).requires_grad_()
    (result,) = torch.autograd.grad(lam(x, x).square().sum(), x)
    twins = x.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    of_features, of_values = torch.autograd.grad(lam(*twins).square().sum(), twins)
    torch.testing.assert_close(result, of_features + of_values)


@every_backend
@pytest.mark.parametrize("name", ["lam", "blp_objective"])
def test_inputs_that_are_parts_of_one_tensor(name: str, backend: str) -> None:
    """Both inputs are slices of one tensor, as from a network with one head for both logits."""
    op = OPS[name]
    head = randn(N, sum(op.channels), *LOW).requires_grad_()
    parts = head.split(op.channels, 1)
    result = torch.autograd.grad(op.run(*parts, TARGET, PRESENT, backend=backend).sum(), head)
    leaves = [part.detach().clone().requires_grad_() for part in parts]
    expected = torch.autograd.grad(op.run(*leaves, TARGET, PRESENT, backend=backend).sum(), leaves)
    torch.testing.assert_close(result[0], torch.cat(expected, 1))


@differentiable
@every_backend
def test_either_input_alone(op: Op, backend: str) -> None:
    full = _gradients(op, [x.requires_grad_() for x in _maps(op)], backend=backend)
    for i, expected in zip(op.trained, full, strict=True):
        maps = _maps(op)
        maps[i].requires_grad_()
        output = op.run(*maps, TARGET, PRESENT, backend=backend)
        (result,) = torch.autograd.grad(output, maps[i], output.detach() + 1)
        torch.testing.assert_close(result, expected)
        assert all(x.grad_fn is None and x.grad is None for x in maps)


@every_op
@every_backend
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_empty_batch(op: Op, layout: str, backend: str) -> None:
    maps = [x.requires_grad_() for x in _maps(op, layout, n=0)]
    output = op.run(*maps, TARGET[:0].byte(), PRESENT[:0], backend=backend)
    if not op.trained:
        assert output.shape == (0, *HIGH)
        return
    if output.dim() == 0:
        assert output.item() == 0
    else:
        assert output.shape == maps[1].shape
    output.sum().backward()
    for i in op.trained:
        assert maps[i].grad.shape == maps[i].shape
