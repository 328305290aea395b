"""What the losses are measured against.

A peer is made for a case, and maps logits, target and present classes to losses and labels. All
peers resize each of the logits once, whatever they compute from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops
from benchmarks.losses_cases import (
    ALL,
    BLP,
    GAMMA,
    IGNORE,
    PSEUDO,
    THRESHOLD,
    UNLABELED_WEIGHT,
    Case,
    Run,
)

GUARD = 1e-7


def _ours(case: Case) -> Run:
    numbers = {"gamma": GAMMA, "unlabeled_weight": UNLABELED_WEIGHT, "threshold": THRESHOLD}

    def run(seg: Tensor, annotation: Tensor, target: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        if case.what == PSEUDO:
            return (blpseg_ops.pseudo_labels(seg, target, present, threshold=THRESHOLD),)
        if case.what == BLP:
            return (blpseg_ops.blp_loss(seg, annotation.detach(), target, gamma=GAMMA),)
        if case.what == ALL:
            return blpseg_ops.blp_objective(seg, annotation, target, **numbers)[:2]
        return blpseg_ops.blp_objective(seg, annotation, target, class_present=present, **numbers)

    return run


def _published(case: Case) -> Run:
    """Softmax of everything, and products with one-hot targets."""
    weights = _class_weights(case)

    def run(seg: Tensor, annotation: Tensor, target: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        seg = _resize(seg, case)
        if case.what == PSEUDO:
            return (labels_of(seg, target, present),)
        annotation = _resize(annotation, case)
        if case.what == BLP:
            return (blp(seg, annotation, target),)
        annotated = F.cross_entropy(annotation, target.long(), weights, ignore_index=IGNORE)
        if case.what == ALL:
            return blp(seg, annotation, target), annotated
        labels = labels_of(seg.detach(), target, present)
        return blp(seg, annotation, labels), annotated, labels

    def blp(seg: Tensor, annotation: Tensor, target: Tensor) -> Tensor:
        labeled = target < case.classes
        classes = F.one_hot(target.long().where(labeled, 0), case.classes).permute(0, 3, 1, 2)
        one_hot = classes.float() * labeled[:, None]
        p, q = seg.softmax(1), annotation.softmax(1)
        annotated = (q[:, : case.classes] * p * one_hot).sum(1).detach()
        weight = (1 - annotated) ** GAMMA * labeled
        losses = -(seg.log_softmax(1) * one_hot).sum(1) * weight
        return (losses.sum((1, 2)) / (weight.sum((1, 2)) + GUARD)).mean()

    def labels_of(seg: Tensor, target: Tensor, present: Tensor) -> Tensor:
        largest, label = (seg.softmax(1) * present[:, :, None, None]).max(1)
        label = label.where(largest >= THRESHOLD, IGNORE)
        return label.where(target == case.classes, target.long())

    return run


def _careful(case: Case) -> Run:
    """One log-softmax of each, from which what is needed is gathered."""
    weights = _class_weights(case)

    def run(seg: Tensor, annotation: Tensor, target: Tensor, present: Tensor) -> tuple[Tensor, ...]:
        log_p = _resize(seg, case).log_softmax(1)
        if case.what == PSEUDO:
            return (labels_of(log_p, target, present),)
        if case.what == BLP:
            annotation = annotation.detach()
        log_q = _resize(annotation, case).log_softmax(1)
        if case.what == BLP:
            return (blp(log_p, log_q, target),)
        annotated = F.nll_loss(log_q, target.long(), weights, ignore_index=IGNORE)
        if case.what == ALL:
            return blp(log_p, log_q, target), annotated
        labels = labels_of(log_p.detach(), target, present)
        return blp(log_p, log_q, labels), annotated, labels

    def blp(log_p: Tensor, log_q: Tensor, target: Tensor) -> Tensor:
        labeled = target < case.classes
        label = target.long().where(labeled, 0)[:, None]
        log_p_y = log_p.gather(1, label).squeeze(1)
        log_q_y = log_q.detach().gather(1, label).squeeze(1)
        weight = (1 - (log_p_y.detach() + log_q_y).exp()) ** GAMMA * labeled
        return -((weight * log_p_y).sum((1, 2)) / (weight.sum((1, 2)) + GUARD)).mean()

    def labels_of(log_p: Tensor, target: Tensor, present: Tensor) -> Tensor:
        largest, label = log_p.where(present[:, :, None, None], -math.inf).max(1)
        label = label.where(largest >= math.log(THRESHOLD), IGNORE)
        return label.where(target == case.classes, target.long())

    return run


def _resize(logits: Tensor, case: Case) -> Tensor:
    return F.interpolate(logits, (case.high, case.high), mode="bilinear", align_corners=False)


def _class_weights(case: Case) -> Tensor:
    weights = torch.ones(case.classes + 1, device=case.device)
    weights[-1] = UNLABELED_WEIGHT
    return weights


OURS, PUBLISHED, CAREFUL = "blpseg_ops", "published", "careful"
PUBLISHED_COMPILED, CAREFUL_COMPILED = "published, compiled", "careful, compiled"
PEERS: dict[str, Callable[[Case], Run]] = {
    OURS: _ours,
    PUBLISHED: _published,
    PUBLISHED_COMPILED: lambda case: torch.compile(_published(case), dynamic=False),
    CAREFUL: _careful,
    CAREFUL_COMPILED: lambda case: torch.compile(_careful(case), dynamic=False),
}
COMPILES = {PUBLISHED_COMPILED, CAREFUL_COMPILED}
