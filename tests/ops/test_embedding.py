"""LocalAggregation's embedding has float32 accuracy on TF32 chips, and CUDA graphs capture it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blpseg_ops import LocalAggregation, _basis, _precision, reference
from blpseg_ops._patch_conv import PatchConv2d
from blpseg_ops.fallback.lam import lam_backward, lam_forward

from ._common import randn

MULTIPLIES = {"mm", "bmm", "addmm", "baddbmm", "convolution", "convolution_backward"}


def tf32(x: Tensor) -> Tensor:
    """Round float32 to 10 bits of mantissa."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Tf32Chip(TorchDispatchMode):
    """Imitate a GPU that allows TF32: round float32 operands of products; record operators."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        self.called.add(name)
        if name in MULTIPLIES:
            args = tuple(
                tf32(x.contiguous()) if isinstance(x, Tensor) and x.dtype == torch.float32 else x
                for x in args
            )
        return func(*args, **(kwargs or {}))


@pytest.fixture
def high_precision_off() -> Iterator[None]:
    """Set torch.set_float32_matmul_precision("high") for the test."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def smooth_images(n: int, height: int, width: int) -> Tensor:
    """Return images whose near pixels look alike; with white noise, LAM's gradients are noise."""
    waves = F.interpolate(randn(n, 3, 4, 5), (height, width), mode="bicubic")
    return waves + 0.05 * randn(n, 3, height, width, seed=1)


def step(module: LocalAggregation, images: Tensor, logits: Tensor) -> list[Tensor]:
    """Return output and gradients of a training step."""
    output = module(images, logits)
    grads = torch.autograd.grad(output.square().sum(), list(module.parameters()))
    return [output.detach(), *grads]


def largest_error(results: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest error, relative to the largest number of each tensor."""
    return max(
        ((result - wanted).abs().max() / wanted.abs().max()).item()
        for result, wanted in zip(results, expected, strict=True)
    )


def in_both_precisions(project: bool) -> tuple[LocalAggregation, list[Tensor], list[Tensor]]:
    """Return a module, float32 inputs, and the expected results in float64."""
    torch.manual_seed(0)
    module = LocalAggregation(dim=96, sigma=3.0)
    module._should_project = lambda: project  # type: ignore[method-assign]
    inputs = [smooth_images(2, 50, 70).float(), randn(2, 5, 13, 18, seed=2).float()]
    expected = step(module.double(), *(x.double() for x in inputs))
    return module.float(), inputs, expected


@pytest.mark.parametrize("project", [False, True])
def test_float32_where_the_chip_rounds_to_tf32(project: bool, high_precision_off: None) -> None:
    module, inputs, expected = in_both_precisions(project)
    with Tf32Chip() as chip:
        results = step(module, *inputs)
    assert "convolution" not in chip.called
    assert largest_error(results, expected) < 1e-4


def test_a_convolution_is_not_good_enough(
    monkeypatch: pytest.MonkeyPatch, high_precision_off: None
) -> None:
    module, inputs, expected = in_both_precisions(False)
    monkeypatch.setattr(PatchConv2d, "forward", torch.nn.Conv2d.forward)
    with Tf32Chip() as chip:
        results = step(module, *inputs)
    assert "convolution" in chip.called
    assert largest_error(results, expected) > 1e-3


@pytest.mark.parametrize("guarded", [True, False])
def test_scores_of_fallback_and_reference_are_not_rounded(
    monkeypatch: pytest.MonkeyPatch, high_precision_off: None, guarded: bool
) -> None:
    if not guarded:  # negative control: without the guard the results are wrong
        monkeypatch.setattr(_precision, "_may_round_operands", lambda device_type: False)
    f, v = 5 + 0.05 * randn(1, 20, 6, 7), randn(1, 3, 6, 7, seed=1)  # scores of 500
    params = (2.0, 0.0, 1.0)
    saved = lam_forward(f, v, *params)
    expected = [reference.lam(f, v, 2.0), saved[0], *lam_backward(v, f, v, *saved, *params)]
    with Tf32Chip():
        f, v = f.float(), v.float()
        saved = lam_forward(f, v, *params)
        results = [reference.lam(f, v, 2.0), saved[0], *lam_backward(v, f, v, *saved, *params)]
    assert (largest_error(results, expected) < 1e-3) == guarded


def test_a_captured_step_needs_no_solver() -> None:
    module, inputs, _ = in_both_precisions(True)
    with Tf32Chip() as chip:
        step(module, *inputs)
    solvers = {name for name in chip.called if name.startswith(("linalg", "_linalg", "geqrf"))}
    assert solvers <= {"linalg_vector_norm"}  # a reduction
    # Reading a number back from the device would end a capture, too.
    assert not chip.called & {"_local_scalar_dense", "item", "nonzero"}


def test_coordinates_compile_into_one_graph() -> None:
    module, (images, _), _ = in_both_precisions(True)
    compiled = torch.compile(module.coordinates, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), module.coordinates(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-5])
def test_orthonormal_in_the_order_of_gram_schmidt(smallest: float) -> None:
    lengths = torch.logspace(0, torch.tensor(smallest).log10().item(), 50, dtype=torch.float64)
    orthonormal = torch.linalg.qr(randn(256, 50))[0]
    vectors = orthonormal * lengths @ torch.linalg.qr(randn(50, 50, seed=1))[0]
    basis, expected = _basis.orthonormalize(vectors), torch.linalg.qr(vectors)[0]
    for k in (1, 7, 50):  # the same nested spaces
        first, same = basis[:, :k], expected[:, :k]
        error = (first @ (first.mT @ vectors) - same @ (same.mT @ vectors)).abs().max()
        assert error < 1e-7 * vectors.abs().max()
    products = (basis.mT @ vectors).mT @ (basis.mT @ vectors)
    torch.testing.assert_close(products, vectors.mT @ vectors, rtol=0, atol=1e-11)


def test_dependent_vectors_add_nothing() -> None:
    vectors = randn(64, 10)
    vectors[:, 4] = vectors[:, 1] - 2 * vectors[:, 3]
    vectors[:, 7] = 0
    basis = _basis.orthonormalize(vectors)
    assert basis.isfinite().all()
    torch.testing.assert_close(basis @ (basis.mT @ vectors), vectors, rtol=1e-6, atol=1e-6)
    assert basis[:, [4, 7]].norm(dim=0).max() < 1e-6
