"""The losses and what one would write in PyTorch instead: time, peak memory and error.

At training size, with VOC's 21 classes and ADE20K's 150, on the CPU and on a CUDA device if there
is one. ``-k cpu`` or ``-k cuda`` takes one of both, ``-k blpseg_ops`` ours alone. Every peer fits
24 GiB: the published formulation takes about 9 GB with 150 classes, whose logits in the target's
size take 0.9 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from benchmarks.losses_cases import (
    ALL,
    BLP,
    GAMMA,
    IGNORE,
    PSEUDO,
    SELF_TRAINING,
    THRESHOLD,
    UNLABELED_WEIGHT,
    Case,
    Inputs,
    call,
    make_inputs,
)
from benchmarks.losses_peers import COMPILES, OURS, PEERS
from benchmarks.memory import measure_peaks, peak_on_cuda
from blpseg_ops.fallback.blp_objective import blp_objective_backward, blp_objective_forward

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@lru_cache
def _cases(smoke: bool) -> list[tuple[str, Case]]:
    """Peers and what they are measured on; for a smoke test small images, and little to compile.

    Cases with as many classes follow each other, since they share what _truth() computes; for equal
    cases ours comes first.
    """
    pairs = sorted(_all(), key=lambda pair: (pair[1].device, pair[1].classes, pair[1]))
    if not smoke:
        return pairs
    return [
        (peer, case.shrunk())
        for peer, case in pairs
        if case.classes == 21 and (peer not in COMPILES or case.what == SELF_TRAINING)
    ]


def _all() -> Iterator[tuple[str, Case]]:
    for device in DEVICES:
        for peer in PEERS:
            for classes in (21, 150):
                yield peer, Case(ALL, classes, backward=False, device=device)
                yield peer, Case(ALL, classes, backward=True, device=device)
                yield peer, Case(BLP, classes, backward=True, device=device)
                yield peer, Case(PSEUDO, classes, backward=False, device=device)
            yield peer, Case(SELF_TRAINING, 21, backward=True, device=device)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One benchmark for each peer and case."""
    pairs = _cases(smoke=metafunc.config.getoption("benchmark_disable"))
    metafunc.parametrize("peer, case", pairs, ids=[f"{peer}: {case}" for peer, case in pairs])


def test_losses(benchmark: Any, peer: str, case: Case) -> None:
    benchmark.group = f"losses: {case}"
    benchmark.extra_info.update(case._asdict(), peer=peer)
    run = partial(call, PEERS[peer](case), case, make_inputs(case))
    if case.device == "cuda":
        run()  # compiles, and loads libraries
        benchmark.extra_info["peak_bytes"] = peak_on_cuda(run)
    elif peaks := _peaks_on_cpu(peer, benchmark.disabled):
        benchmark.extra_info["peak_bytes"] = peaks[case]

    rounds = 20 if peer == OURS else 3
    # A compiled peer's first call compiles. Other first calls are hardly slower: the median serves.
    result = benchmark.pedantic(run, rounds=rounds, warmup_rounds=int(peer in COMPILES))

    truth = _truth(case._replace(what="", backward=True, device="cpu"))
    expected = truth.of(case)
    if case.what in (PSEUDO, SELF_TRAINING):
        # At the threshold rounding decides; more differences than that are a bug in one of the two.
        (place,) = (i for i, tensor in enumerate(result) if not tensor.is_floating_point())
        agreement = (result[place].cpu().long() == truth.labels).double().mean()
        assert agreement > 0.9999
        benchmark.extra_info["labeled_fraction"] = float((truth.labels != IGNORE).double().mean())
        result = result[:place] + result[place + 1 :]
    errors = {
        name: float((tensor.cpu() - wanted).abs().max() / wanted.abs().max())
        for tensor, (name, wanted) in zip(result, expected.items(), strict=True)
    }
    assert all(error < 1e-3 for error in errors.values()), errors
    if case.what in (ALL, BLP) and case.backward:
        benchmark.extra_info["errors"] = errors


@lru_cache
def _peaks_on_cpu(peer: str, smoke: bool) -> dict[Case, int]:
    """Peak memory of all CPU cases, from one process per peer."""
    cases = [case for name, case in _cases(smoke) if name == peer and case.device == "cpu"]
    return measure_peaks("losses", peer, cases)  # 21 classes first, so memory needs grow


class _Truth(NamedTuple):
    """Losses, gradients and labels in float64."""

    from_target: dict[str, Tensor]  # the BLP loss learns the target's labels
    from_pseudo: dict[str, Tensor]  # it learns the pseudo labels
    labels: Tensor  # [N, H, W] int64, pseudo labels

    def of(self, case: Case) -> dict[str, Tensor]:
        """Return the losses and gradients of a case, in the order in which call() returns them."""
        found = self.from_pseudo if case.what == SELF_TRAINING else self.from_target
        names = {PSEUDO: (), BLP: ("blp_loss", "grad_seg_logits")}.get(case.what, tuple(found))
        return {name: found[name] for name in names if case.backward or "grad" not in name}


@lru_cache(maxsize=1)
def _truth(case: Case) -> _Truth:
    inputs = make_inputs(case)
    (from_target, _), (from_pseudo, labels) = (
        _in_float64(inputs, self_training) for self_training in (False, True)
    )
    return _Truth(from_target, from_pseudo, labels)


def _in_float64(inputs: Inputs, self_training: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Run the reference on one image at a time: all at once would take many gigabytes."""
    images = []
    for seg, annotation, target, present in zip(
        *(x.detach().split(1) for x in inputs), strict=True
    ):
        logits, settings = (seg.double(), annotation.double()), (GAMMA, UNLABELED_WEIGHT)
        *losses, blp_sum, annotation_sum, labels, blp_saved, saved = blp_objective_forward(
            *logits, target, present if self_training else None, *settings, THRESHOLD, IGNORE
        )
        one, blp_target = torch.ones_like(blp_sum[0]), labels if self_training else target
        sums = (blp_sum, annotation_sum, blp_saved, saved)
        grads = blp_objective_backward(
            one, one, *logits, blp_target, target, *sums, *settings, IGNORE
        )
        images.append((*losses, *grads, annotation_sum, labels))
    blp, annotated, grad_seg, grad_annotation, sums, labels = zip(*images, strict=True)
    fraction = torch.stack(sums) / sum(sums)  # of the annotation loss, per image
    return {
        "blp_loss": torch.stack(blp).mean(),
        "annotation_loss": torch.stack(annotated) @ fraction,
        "grad_seg_logits": torch.cat(grad_seg) / len(blp),
        "grad_annotation_logits": torch.cat(grad_annotation) * fraction[:, None, None, None],
    }, torch.cat(labels).long()
