"""On a CUDA device: the kernels against the CPU's, and every golden file on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import blpseg_ops
from blpseg_ops import backends

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SIZES = [(1, 1), (11, 13), (44, 52), (37, 100), (3, 5), (253, 7)]
EXACT = {"rtol": 0.0, "atol": 1e-10}


def test_the_kernel_is_loaded() -> None:
    assert backends.available("upsample_argmax", "cuda")[0] == "cuda"


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
