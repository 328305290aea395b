"""On a CUDA device: the kernels against the CPU's, and every golden file on the device.

``benchmarks/gpu_suite.sh`` runs those named sanitizer under compute-sanitizer, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

import blpseg_ops
from blpseg_ops import backends

from . import _two_grids_inputs
from ._common import randn
from ._lam_inputs import (
    CHECKED,
    HOSTILE,
    MODULE_TOLERANCE,
    RESULTS,
    Case,
    ErrorBudget,
    Results,
    assert_equal,
    assert_scores_agree,
    far_clusters,
    hostile,
    module_step,
    normal_case,
    probabilities,
    run_kernel,
    run_reference,
    smooth_images,
)
from ._two_grids_inputs import normal_case as two_grids_case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SIZES = [(1, 1), (11, 13), (44, 52), (37, 100), (3, 5), (253, 7)]
EXACT = {"rtol": 0.0, "atol": 1e-10}


def test_the_kernel_is_loaded() -> None:
    assert backends.available("upsample_argmax", "cuda")[0] == "cuda"
    assert backends.available("lam", "cuda")[0] == "triton"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("classes", [1, 21, 300])
@pytest.mark.parametrize("channels_last", [False, True])
def test_upsample_argmax_agrees_with_the_cpu(
    rng: torch.Generator,
    dtype: torch.dtype,
    size: tuple[int, int],
    classes: int,
    channels_last: bool,
) -> None:
    logits = torch.randn(2, classes, 11, 13, generator=rng).to(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    expected = blpseg_ops.upsample_argmax(logits, size)
    labels = blpseg_ops.upsample_argmax(logits.cuda(), size)
    assert labels.dtype == expected.dtype
    # The device may contract a blend into one rounding; only near ties can tell.
    assert (labels.cpu() == expected).float().mean() > 0.999


def test_runs_under_a_cuda_graph(rng: torch.Generator) -> None:
    logits = torch.randn(2, 21, 24, 24, generator=rng).cuda()
    expected = blpseg_ops.upsample_argmax(logits, (96, 96))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        labels = blpseg_ops.upsample_argmax(logits, (96, 96))
    labels.zero_()
    graph.replay()
    assert torch.equal(labels, expected)


def test_empty_batch() -> None:
    assert blpseg_ops.upsample_argmax(torch.zeros(0, 3, 4, 4).cuda(), (8, 8)).shape == (0, 8, 8)


def test_golden_lam(golden_lam: dict[str, Any]) -> None:
    g = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in golden_lam.items()}
    features, values = g["features"].requires_grad_(), g["values"].requires_grad_()
    output = blpseg_ops.lam(features, values, g["sigma"], eps=g["eps"])
    output.backward(g["grad_output"])
    torch.testing.assert_close(output, g["output"], **EXACT)
    torch.testing.assert_close(features.grad, g["grad_features"], **EXACT)
    torch.testing.assert_close(values.grad, g["grad_values"], **EXACT)


def test_golden_losses(golden_loss: dict[str, Any]) -> None:
    g = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in golden_loss.items()}
    seg, annotation = g["seg_logits"].requires_grad_(), g["annotation_logits"].requires_grad_()
    blp = blpseg_ops.blp_loss(seg, annotation.detach(), g["target"], gamma=g["gamma"])
    annotated = blpseg_ops.annotation_loss(
        annotation, g["target"], unlabeled_weight=g["unlabeled_weight"]
    )
    (blp + annotated).backward()
    assert blp.item() == pytest.approx(g["blp_loss"], rel=0, abs=1e-10)
    assert annotated.item() == pytest.approx(g["annotation_loss"], rel=0, abs=1e-10)
    torch.testing.assert_close(seg.grad, g["grad_seg_logits"], **EXACT)
    torch.testing.assert_close(annotation.grad, g["grad_annotation_logits"], **EXACT)
    labels = blpseg_ops.pseudo_labels(
        seg, g["target"], g["class_present"], threshold=g["threshold"]
    )
    torch.testing.assert_close(labels, g["pseudo_labels"])


@pytest.mark.parametrize("pseudo", [False, True])
def test_golden_objective(golden_loss: dict[str, Any], pseudo: bool) -> None:
    g = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in golden_loss.items()}
    seg, annotation = g["seg_logits"].requires_grad_(), g["annotation_logits"].requires_grad_()
    blp, annotated, labels = blpseg_ops.blp_objective(
        seg,
        annotation,
        g["target"],
        gamma=g["gamma"],
        unlabeled_weight=g["unlabeled_weight"],
        class_present=g["class_present"] if pseudo else None,
        threshold=g["threshold"],
    )
    (blp + annotated).backward()
    suffix = "_pseudo" if pseudo else ""
    assert blp.item() == pytest.approx(g["blp_loss" + suffix], rel=0, abs=1e-10)
    assert annotated.item() == pytest.approx(g["annotation_loss"], rel=0, abs=1e-10)
    torch.testing.assert_close(seg.grad, g["grad_seg_logits" + suffix], **EXACT)
    torch.testing.assert_close(annotation.grad, g["grad_annotation_logits"], **EXACT)
    if pseudo:
        torch.testing.assert_close(labels, g["pseudo_labels"])


def _on_device(case: Case) -> Results:
    results = run_kernel(case.map(Tensor.cuda))
    return Results(*(getattr(results, field.name).cpu() for field in fields(Results)))


# N, D, C, h, w, eps
LAM_SIZES = [
    (1, 1, 1, 1, 1, 0.0),
    (2, 300, 60, 1, 37, 1e-7),
    (3, 5, 7, 7, 9, 1e-3),
    (2, 64, 21, 33, 31, 0.0),
    (1, 128, 171, 20, 50, 1e-7),
    (1, 256, 21, 48, 40, 0.0),
    (1, 512, 256, 17, 23, 1e-3),
    (1, 50, 21, 96, 96, 1e-7),
]


@pytest.mark.parametrize("size", LAM_SIZES, ids=str)
def test_lam_in_float32(size: tuple[int, int, int, int, int, float]) -> None:
    *shape, eps = size
    budget = ErrorBudget(normal_case(*shape, sigma=2.5, eps=eps, scale=0.7))
    budget.check(_on_device(budget.case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", LAM_SIZES, ids=str)
def test_lam_multiplies_halves_as_given(
    size: tuple[int, int, int, int, int, float], dtype: torch.dtype
) -> None:
    *shape, eps = size
    case = normal_case(*shape, sigma=2.5, eps=eps, scale=0.7).to(dtype)
    results = _on_device(case)
    assert all(getattr(results, name).dtype == dtype for name in CHECKED)
    ErrorBudget(case).check_halves(results)


@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("name", HOSTILE)
def test_lam_on_hostile_inputs(name: str, eps: float) -> None:
    budget = hostile(name, eps)
    budget.check(_on_device(budget.case))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_lam_is_the_same_every_time(dtype: torch.dtype) -> None:
    case = normal_case(4, 50, 21, 60, 70, eps=1e-7).to(dtype).map(Tensor.cuda)
    expected = run_kernel(case)
    for _ in range(3):
        assert_equal(run_kernel(case), expected)


def test_lam_in_float64_is_the_reference() -> None:
    case = normal_case(1, 5, 3, 9, 11).map(Tensor.cuda)
    assert_equal(run_kernel(case), run_reference(case))


def test_lam_of_any_layout() -> None:
    layouts: list[Callable[[Tensor], Tensor]] = [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.mT.contiguous().mT,
        lambda x: x[:1].expand(x.shape),
    ]
    for layout in layouts:
        case = normal_case(2, 9, 5, 17, 23).to(torch.float32).map(Tensor.cuda).map(layout)
        assert_equal(run_kernel(case), run_kernel(case.map(Tensor.contiguous)))


def test_lam_with_offsets_beyond_32_bits() -> None:
    case = normal_case(2, 3, 3, 11, 10).to(torch.bfloat16).map(Tensor.cuda)
    room = torch.empty(2**31 + 2**30, dtype=torch.bfloat16, device="cuda")
    far = room.as_strided((2, 3, 11, 10), (2**31 + 5, 2**14, 2**7, 1))
    expected = run_kernel(case)
    far.copy_(case.features)
    results = run_kernel(Case(far, case.values, case.grad_output))
    assert_equal(results, expected)


def test_lam_shows_what_is_not_finite() -> None:
    case = normal_case(2, 6, 3, 40, 40, sigma=0.5).to(torch.float32).map(Tensor.cuda)
    case.values[1, 1, 3, 4] = torch.inf
    results, expected = run_kernel(case), run_reference(case)
    for name in RESULTS:
        assert not (getattr(results, name).isfinite() & ~getattr(expected, name).isfinite()).any()
        assert getattr(results, name)[0].isfinite().all()


def test_forward_and_backward_have_the_same_scores() -> None:
    for dims in (16, 50, 100, 300):
        features = far_clusters(9, 10, dims).to(torch.float32)
        assert_scores_agree(*probabilities(_lam, _lam_backward, features, 6.0, 0.0, 1.0, None))


def _lam(*args: Any) -> tuple[Tensor, ...]:
    return _on_cuda(torch.ops.blpseg.lam, args)


def _lam_backward(*args: Any) -> tuple[Tensor, ...]:
    return _on_cuda(torch.ops.blpseg.lam_backward, args)


def _on_cuda(op: Callable[..., tuple[Tensor, ...]], args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    on_device = (x.cuda() if isinstance(x, Tensor) else x for x in args)
    return tuple(result.cpu() for result in op(*on_device))


@pytest.fixture
def tf32_allowed() -> Iterator[None]:
    """Let torch compute convolutions and matrix products of float32 in TF32, as users may."""
    conv, matmul = torch.backends.cudnn.conv.fp32_precision, torch.get_float32_matmul_precision()
    torch.backends.cudnn.conv.fp32_precision = "tf32"
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.conv.fp32_precision = conv
    torch.set_float32_matmul_precision(matmul)


@pytest.mark.parametrize("dim", [256, 32])  # with and without coordinates
def test_local_aggregation_trains_under_a_cuda_graph_and_autocast(dim: int) -> None:
    module = blpseg_ops.LocalAggregation(dim, sigma=3.0, eps=1e-7).cuda()
    images, logits = smooth_images(2, 64, 80).float().cuda(), randn(2, 21, 16, 20).float().cuda()

    def step() -> tuple[Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16):
            output = module(images, logits)
        assert output.dtype == torch.float32
        return output.detach(), *torch.autograd.grad(output.square().sum(), module.parameters())

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()  # compiles the kernels, outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for got, wanted in zip(captured, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def _agrees_with_the_cpu() -> None:
    module = blpseg_ops.LocalAggregation(sigma=3.0).double()
    images, logits = smooth_images(2, 50, 70), randn(2, 5, 13, 18)
    expected = module_step(module, images, logits)
    module.to("cuda", torch.float32)
    results = module_step(module, images.float().cuda(), logits.float().cuda())
    for got, wanted in zip(results, expected, strict=True):
        assert (got.cpu() - wanted).abs().max() <= MODULE_TOLERANCE * wanted.abs().max()


def test_local_aggregation_agrees_with_the_cpu() -> None:
    _agrees_with_the_cpu()


@pytest.mark.usefixtures("tf32_allowed")
def test_local_aggregation_is_in_float32_whatever_the_tf32_switches_say() -> None:
    _agrees_with_the_cpu()


@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sanitizer_lam(dtype: torch.dtype, eps: float) -> None:
    for size in ((1, 50, 21, 9, 19), (1, 256, 60, 17, 8)):
        results = run_kernel(normal_case(*size, eps=eps).to(dtype).map(Tensor.cuda))
        assert all(getattr(results, name).isfinite().all() for name in RESULTS)


TWO_GRIDS = {
    "finer": two_grids_case((9, 13), (36, 51), 50, 21, eps=1e-3),
    "coarser": two_grids_case((33, 31), (20, 25), 70, 200),
    "window": two_grids_case((32, 32), (112, 112), 64, 33, n=1, radius=3.5),
    "no Gaussian": two_grids_case((12, 12), (48, 50), 300, 5, n=1, inv=0.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", TWO_GRIDS)
def test_sanitizer_two_grids_agree_with_float64(name: str, dtype: torch.dtype) -> None:
    case = TWO_GRIDS[name].to(dtype)
    expected = _two_grids_inputs.run_fallback(case.to(torch.float64))
    results = _two_grids_inputs.run_kernel(case.cuda())
    _two_grids_inputs.assert_equal(results, _two_grids_inputs.run_kernel(case.cuda()))
    tolerance = 2e-4 if dtype == torch.float32 else 8 * torch.finfo(dtype).eps
    for result in ("output", "grad_queries", "grad_features", "grad_values"):
        exact = getattr(expected, result)
        error = (getattr(results, result).cpu().double() - exact).abs().max()
        assert error <= tolerance * exact.abs().max(), result


def test_two_grids_under_autocast_compile_and_a_cuda_graph() -> None:
    case = two_grids_case((9, 13), (36, 51), 50, 21).to(torch.bfloat16)
    inputs = [x.cuda().requires_grad_() for x in (case.features, case.values, case.queries)]
    sigma = torch.tensor(3.0, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, ...]:
        with torch.autocast("cuda", torch.bfloat16):
            output = blpseg_ops.lam(*inputs[:2], sigma, queries=inputs[2], radius=3.5)
        assert output.dtype == torch.float32
        return output.detach(), *torch.autograd.grad(output.square().sum(), [*inputs, sigma])

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()  # compiles the kernels, outside of the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    compiled = torch.compile(blpseg_ops.lam, fullgraph=True)
    wide = [x.detach().float() for x in inputs]
    output = compiled(*wide[:2], sigma.detach(), queries=wide[2], radius=3.5)
    torch.testing.assert_close(output, expected[0], rtol=1e-5, atol=1e-5)
    for got, wanted in zip(captured, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


def test_sanitizer_upsample_argmax() -> None:
    assert blpseg_ops.upsample_argmax(torch.randn(1, 21, 9, 7).cuda(), (33, 29)).max() < 21
