"""Ops and references equal every golden file to 1e-10 in float64, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import blpseg_ops

BACKENDS = ("auto", "reference")
EXACT = {"rtol": 0.0, "atol": 1e-10}


@pytest.mark.parametrize("backend", BACKENDS)
def test_lam(golden_lam: dict[str, Any], backend: str) -> None:
    g = golden_lam
    features, values = g["features"].requires_grad_(), g["values"].requires_grad_()
    output = blpseg_ops.lam(features, values, g["sigma"], eps=g["eps"], backend=backend)
    output.backward(g["grad_output"])
    torch.testing.assert_close(output, g["output"], **EXACT)
    torch.testing.assert_close(features.grad, g["grad_features"], **EXACT)
    torch.testing.assert_close(values.grad, g["grad_values"], **EXACT)


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_blp_loss(golden_loss: dict[str, Any], backend: str, pseudo: bool) -> None:
    g = golden_loss
    logits = g["seg_logits"].requires_grad_()
    loss = blpseg_ops.blp_loss(
        logits,
        g["annotation_logits"],
        g["pseudo_labels" if pseudo else "target"],
        gamma=g["gamma"],
        ignore_index=g["ignore_index"],
        backend=backend,
    )
    loss.backward()
    suffix = "_pseudo" if pseudo else ""
    assert loss.item() == pytest.approx(g["blp_loss" + suffix], rel=0, abs=1e-10)
    torch.testing.assert_close(logits.grad, g["grad_seg_logits" + suffix], **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_annotation_loss(golden_loss: dict[str, Any], backend: str) -> None:
    g = golden_loss
    logits = g["annotation_logits"].requires_grad_()
    loss = blpseg_ops.annotation_loss(
        logits,
        g["target"],
        unlabeled_weight=g["unlabeled_weight"],
        ignore_index=g["ignore_index"],
        backend=backend,
    )
    loss.backward()
    assert loss.item() == pytest.approx(g["annotation_loss"], rel=0, abs=1e-10)
    torch.testing.assert_close(logits.grad, g["grad_annotation_logits"], **EXACT)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pseudo_labels(golden_loss: dict[str, Any], backend: str) -> None:
    g = golden_loss
    labels = blpseg_ops.pseudo_labels(
        g["seg_logits"],
        g["target"],
        g["class_present"],
        threshold=g["threshold"],
        ignore_index=g["ignore_index"],
        backend=backend,
    )
    assert labels.dtype == torch.uint8
    torch.testing.assert_close(labels, g["pseudo_labels"])


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_blp_objective(golden_loss: dict[str, Any], backend: str, pseudo: bool) -> None:
    g = golden_loss
    seg, annotation = g["seg_logits"].requires_grad_(), g["annotation_logits"].requires_grad_()
    objective = blpseg_ops.blp_objective(
        seg,
        annotation,
        g["target"],
        gamma=g["gamma"],
        unlabeled_weight=g["unlabeled_weight"],
        class_present=g["class_present"] if pseudo else None,
        threshold=g["threshold"],
        ignore_index=g["ignore_index"],
        backend=backend,
    )
    (objective.blp_loss + objective.annotation_loss).backward()
    suffix = "_pseudo" if pseudo else ""
    assert objective.blp_loss.item() == pytest.approx(g["blp_loss" + suffix], rel=0, abs=1e-10)
    assert objective.annotation_loss.item() == pytest.approx(g["annotation_loss"], rel=0, abs=1e-10)
    torch.testing.assert_close(seg.grad, g["grad_seg_logits" + suffix], **EXACT)
    torch.testing.assert_close(annotation.grad, g["grad_annotation_logits"], **EXACT)
    if pseudo:
        torch.testing.assert_close(objective.pseudo_labels, g["pseudo_labels"])
    else:
        assert objective.pseudo_labels is None
