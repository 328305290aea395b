"""Accuracy by distance as curves: what the paper argues with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blpseg.metrics import DistanceBin, Scores

DISTANCES = {"by_scribble_distance": "scribble", "by_border_distance": "border"}

_WIDTH, _HEIGHT = 10, 3.4  # inches, of a row of two charts


def distance_curves(scores: Mapping[str, Sequence[Scores]], baseline: str | None = None) -> Figure:
    """Draw accuracy by the distance to a scribble and to a border, a curve per name.

    Args:
        scores: Name of a network to its scores, one per seed; the curve is their mean, the bar at a
            point their standard deviation. Names whose distances were not measured are left out.
        baseline: Name to subtract, seed by seed, in a second row of charts; None: no such row.

    Returns:
        A figure with two charts a row.
    """
    rows = 1 if baseline is None else 2
    figure = Figure(figsize=(_WIDTH, rows * _HEIGHT), layout="constrained")
    charts = figure.subplots(rows, 2, squeeze=False)
    for column, (field, thing) in enumerate(DISTANCES.items()):
        values = {name: _accuracies(runs, field) for name, runs in scores.items()}
        values = {name: value for name, value in values.items() if value.size}
        bins = next((getattr(runs[0], field) for runs in scores.values()), [])
        _draw(charts[0, column], values, bins)
        charts[0, column].set(ylabel="accuracy, %")
        if baseline is not None:
            gains = {name: value - values[baseline] for name, value in values.items()}
            _draw(charts[1, column], gains, bins)
            charts[1, column].set(ylabel=f"points above {baseline}")
        charts[-1, column].set(xlabel=f"distance to the nearest {thing}, pixels")
    if len(scores) > 1:
        charts[0, 1].legend(fontsize="small")
    return figure


def _accuracies(runs: Sequence[Scores], field: str) -> np.ndarray:  # [seeds, bins], percent
    shares = [[part.accuracy for part in getattr(run, field)] for run in runs]
    return 100 * np.array(shares, dtype=float)  # None becomes NaN, where a curve breaks off


def _draw(axes: Axes, values: Mapping[str, np.ndarray], bins: Sequence[DistanceBin]) -> None:
    for place, (name, value) in enumerate(values.items()):
        # Side by side within a bin, so that bars don't hide each other.
        x = np.arange(len(bins)) + 0.06 * (place - (len(values) - 1) / 2)
        spread = value.std(0, ddof=1) if len(value) > 1 else None
        axes.errorbar(x, value.mean(0), spread, marker="o", markersize=4, capsize=2, label=name)
    axes.set_xticks(range(len(bins)), [part.span for part in bins])
    axes.grid(alpha=0.3)
