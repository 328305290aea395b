"""The three figures of the README: each against the fastest alternative that was measured."""

from __future__ import annotations

from typing import Any

from benchmarks import (
    lam_cases,
    lam_peers,
    losses_cases,
    losses_peers,
    measured,
    step_cases,
    tables,
)

NAMES = {
    lam_peers.COMPILED: "published code, compiled",
    losses_peers.CAREFUL: "log-softmax and gather",
}


def report(result: dict[str, Any]) -> str:
    """Return the table as markdown."""
    rows = [
        (
            "`lam`: 96 x 96 pixels, 256 features, 21 channels",
            *_figures(
                measured.read(result, "lam", lam_cases.Case),
                lam_cases.TRAINING._replace(backward=True),
                lam_peers.OURS,
            ),
        ),
        (
            "`blp_objective`: both losses, 10 images of 384 x 384, 21 classes",
            *_figures(
                measured.read(result, "losses", losses_cases.Case),
                losses_cases.Case(losses_cases.ALL, 21, backward=True),
                losses_peers.OURS,
            ),
        ),
        (
            "a training step: ResNet-18, 4 crops of 192 x 192",
            *_figures(
                measured.read(result, "step", step_cases.Case),
                step_cases.Case(step_cases.STEP),
                step_cases.OURS,
            ),
        ),
    ]
    info = result["machine_info"]
    heads = [
        f"forward + backward, {info['threads']} threads of an {info['cpu']}",
        "blpseg_ops",
        "fastest alternative",
        "peak memory",
        "its peak memory",
    ]
    return tables.table(heads, rows)


def _figures(results: measured.Results, case: Any, ours: str) -> tuple[str, str, str, str]:
    """Return our time, the best peer's time, our peak memory and the peer's."""
    peers = [peer for peer, of in results if of == case and peer != ours]
    best = min(peers, key=lambda peer: results[peer, case].seconds)
    return (
        tables.time(results, ours, case, ours),
        f"{tables.time(results, best, case, ours)}: {NAMES.get(best, best)}",
        tables.memory(results, ours, case, ours),
        tables.memory(results, best, case, ours),
    )
