"""The plot of ``lam``'s time and memory against size."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from benchmarks.lam_cases import TRAINING, Case
from benchmarks.lam_peers import COMPILED, EAGER, FLEX, OURS, SDPA, WHOLE, bytes_kept
from benchmarks.measured import Results, read

DOCS = Path(__file__).parents[1] / "docs"
PICTURE = "images/lam-scaling.png"
# Colors that color-blind readers can tell apart (Okabe and Ito).
COLORS = {
    OURS: "#D55E00",
    EAGER: "#000000",
    COMPILED: "#0072B2",
    SDPA: "#009E73",
    FLEX: "#CC79A7",
}


def draw(result: dict[str, Any]) -> None:
    """Draw time and memory against size into docs/images/."""
    results = read(result, "lam", Case)
    figure, (time, memory) = plt.subplots(1, 2, figsize=(11.5, 5.5), layout="constrained")
    for peer in WHOLE:
        _lines(time, results, peer, "seconds")
        _lines(memory, results, peer, "peak_bytes")
    sides = (32, 64, 128, 256, 512)
    for axes, title, unit in (
        (time, "Time of one call", "s"),
        (memory, "Peak memory of one call", "B"),
    ):
        axes.set(title=title, xscale="log", yscale="log", xlabel="feature map")
        axes.set_xticks([side**2 for side in sides], [f"{side} x {side}" for side in sides])
        axes.xaxis.minorticks_off()
        axes.yaxis.set_major_formatter(EngFormatter(unit))
        axes.grid(alpha=0.3)
    handles = [Line2D([], [], color=COLORS[peer], marker=".", label=peer) for peer in WHOLE]
    handles += [
        Line2D([], [], color="gray", label="forward"),
        Line2D([], [], color="gray", linestyle="--", label="forward + backward"),
        Line2D([], [], color="gray", linestyle="", marker="x", label="stops here"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(DOCS / PICTURE, dpi=150)
    plt.close(figure)


def _lines(axes: Axes, results: Results, peer: str, field: str) -> None:
    """Draw forward solid, forward + backward dashed, and a cross if a peer stops before ours."""
    for backward, style in ((False, "-"), (True, "--")):
        cases = _scaling(results, peer, backward)
        if not cases:
            continue
        points = [(case.pixels, getattr(results[peer, case], field)) for case in cases]
        axes.plot(*zip(*points, strict=True), style, color=COLORS[peer], marker=".", markersize=5)
        if cases[-1] != _scaling(results, OURS, backward)[-1]:
            axes.plot(*points[-1], "x", color=COLORS[peer], markersize=9, markeredgewidth=2)


def _scaling(results: Results, peer: str, backward: bool) -> list[Case]:
    """Return the cases over all sizes, smallest first."""
    series = TRAINING._replace(backward=backward)
    cases = [case for p, case in results if p == peer]
    same = [case for case in cases if case._replace(h=series.h, w=series.w) == series]
    return sorted(same, key=lambda case: case.pixels)


def why_peers_stop(results: Results) -> str:
    """Say what the next size would take per peer, precomputed matrices included."""
    reasons = []
    for peer in WHOLE:
        last, sizes = _scaling(results, peer, False)[-1], _scaling(results, OURS, False)
        if last != sizes[-1]:
            following = sizes[sizes.index(last) + 1]
            seconds = _extend(results, peer, "seconds", following)
            memory = _extend(results, peer, "peak_bytes", following) + bytes_kept(peer, following)
            size = f"{following.h} x {following.w}"
            reasons.append(f"{peer}: {seconds:.0f} s and {memory / 1e9:.1f} GB at {size}")
    text = f"Peers stop at a cross. The next size would take about ({'; '.join(reasons)})."
    return textwrap.fill(text, 100)


def _extend(results: Results, peer: str, field: str, case: Case) -> float:
    """Extend the straight line through the last two points of the plot to the case."""
    (l0, y0), (l1, y1) = (
        (last.pixels, getattr(results[peer, last], field))
        for last in _scaling(results, peer, case.backward)[-2:]
    )
    slope = math.log(y1 / y0) / math.log(l1 / l0)
    return y1 * (case.pixels / l1) ** slope
