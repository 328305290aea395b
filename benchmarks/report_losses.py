"""The losses on the CPU in docs/performance.md, and their goals."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks import tables
from benchmarks.losses_cases import ALL, BLP, PSEUDO, SELF_TRAINING, Case
from benchmarks.losses_peers import CAREFUL, OURS, PEERS, PUBLISHED
from benchmarks.measured import Results, read

_time, _memory = partial(tables.time, ours=OURS), partial(tables.memory, ours=OURS)

CLASSES = (21, 150)
HALF_ULP = 2**-24  # of float32: the smallest error to compare with


def report(result: dict[str, Any]) -> str:
    """Return all tables as markdown."""
    results = read(result, "losses", Case)
    parts = []
    for classes in CLASSES:
        parts += [f"### With {classes} classes", _times(results, classes)]
        parts += ["Peak memory beyond inputs and gradients:", _peaks(results, classes)]
    parts += [
        "### Error",
        "Largest difference from float64, relative to the largest number of that tensor, in a\n"
        "call of all losses.",
        _errors(results),
    ]
    return "\n\n".join(parts)


def _cases(classes: int) -> dict[str, Case]:
    """Return the measured calls with this number of classes, by column title."""
    cases = {
        "all losses, forward": Case(ALL, classes, backward=False),
        "all losses, forward + backward": Case(ALL, classes, backward=True),
        "`blp_loss`, forward + backward": Case(BLP, classes, backward=True),
        "`pseudo_labels`": Case(PSEUDO, classes, backward=False),
    }
    if classes == 21:
        cases["self-training, forward + backward"] = Case(SELF_TRAINING, classes, backward=True)
    return cases


def goals(result: dict[str, Any]) -> str:
    """Return the table of goals as markdown."""
    results = read(result, "losses", Case)

    def faster(case: Case, *peers: str) -> float:
        ours = results[OURS, case].seconds
        return min(results[peer, case].seconds for peer in peers) / ours

    others = [peer for peer in PEERS if peer != OURS]
    at_least = []
    for classes in CLASSES:
        both, blp = Case(ALL, classes, backward=True), Case(BLP, classes, backward=True)
        pseudo = Case(PSEUDO, classes, backward=False)
        with_ = f", {classes} classes"
        at_least += [
            (f"all losses, faster than any peer{with_}", 8, faster(both, *others)),
            (f"all losses, faster than published{with_}", 13, faster(both, PUBLISHED)),
            (f"`blp_loss`, faster than any peer{with_}", 20, faster(blp, *others)),
            (f"`pseudo_labels`, faster than any peer{with_}", 5, faster(pseudo, *others)),
        ]
    peak = max(
        results[OURS, case].peak_bytes for classes in CLASSES for case in _cases(classes).values()
    )
    worst_error = max(
        error / max(results[CAREFUL, case].errors[name], HALF_ULP)
        for (peer, case), measured in results.items()
        if peer == OURS and case.device == "cpu"
        for name, error in measured.errors.items()
    )
    at_most = [
        ("largest peak memory in MiB", 16.0, peak / 2**20),
        ("error over the error of careful, worst tensor", 2.0, worst_error),
    ]
    return tables.goals(at_least, at_most)


def _times(results: Results, classes: int) -> str:
    cases = _cases(classes)
    rows = [(peer, *(_time(results, peer, case) for case in cases.values())) for peer in PEERS]
    return tables.table(["", *cases], rows)


def _peaks(results: Results, classes: int) -> str:
    cases = _cases(classes)
    rows = [(peer, *(_memory(results, peer, case) for case in cases.values())) for peer in PEERS]
    return tables.table(["", *cases], rows)


def _errors(results: Results) -> str:
    cases = [Case(ALL, classes, backward=True) for classes in CLASSES]
    names = {
        "`blp_loss`": "blp_loss",
        "`annotation_loss`": "annotation_loss",
        "gradient of seg_logits": "grad_seg_logits",
        "gradient of annotation_logits": "grad_annotation_logits",
    }
    rows = [
        (
            f"{peer}, {case.classes} classes",
            *(f"{results[peer, case].errors[name]:.1e}" for name in names.values()),
        )
        for case in cases
        for peer in PEERS
    ]
    return tables.table(["", *names], rows)
