"""Draw accuracy by distance, the curves that the paper's argument rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blpseg.metrics import DistanceBin, Scores

DISTANCES = {"by_scribble_distance": "nearest scribble", "by_border_distance": "region's border"}

_WIDTH, _HEIGHT = 5, 3.4  # of a chart, in inches


def distance_chart(scores: Mapping[str, Sequence[Scores]], field: str) -> Figure:
    """Draw accuracy by one distance; see `distance_curves`.

    Args:
        scores: Name of a network to its scores, one per seed.
        field: One of `DISTANCES`.
    """
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.subplots()
    _draw(axes, _accuracies(scores, field), _bins(scores, field))
    axes.set(xlabel=f"distance to the {DISTANCES[field]}, pixels", ylabel="accuracy, %")
    axes.set_ylim(0, 102)
    return figure


def distance_curves(scores: Mapping[str, Sequence[Scores]], baseline: str | None = None) -> Figure:
    """Draw accuracy by the distance to a scribble and to a border, a curve per name.

    Args:
        scores: Name of a network to its scores, one per seed. A curve shows their mean, its error
            bars their standard deviation.
        baseline: Name of the network that a second row of charts subtracts, per seed; None: no
            second row.

    Returns:
        A figure with two charts per row.
    """
    rows = 1 if baseline is None else 2
    figure = Figure(figsize=(2 * _WIDTH, rows * _HEIGHT), layout="constrained")
    charts = figure.subplots(rows, 2, squeeze=False)
    for column, (field, thing) in enumerate(DISTANCES.items()):
        values, bins = _accuracies(scores, field), _bins(scores, field)
        _draw(charts[0, column], values, bins)
        charts[0, column].set(ylabel="accuracy, %")
        if baseline is not None:
            gains = {name: value - values[baseline] for name, value in values.items()}
            _draw(charts[1, column], gains, bins)
            charts[1, column].set(ylabel=f"points above {baseline}")
        charts[-1, column].set(xlabel=f"distance to the {thing}, pixels")
    charts[0, 1].legend(fontsize="small")
    return figure


def _bins(scores: Mapping[str, Sequence[Scores]], field: str) -> list[DistanceBin]:
    return getattr(next(iter(scores.values()))[0], field)


def _accuracies(scores: Mapping[str, Sequence[Scores]], field: str) -> dict[str, np.ndarray]:
    """Collect percent [seeds, bins] per name; NaN, a gap in the curve, for bins without pixels."""
    return {
        name: 100
        * np.array([[part.accuracy for part in getattr(run, field)] for run in runs], dtype=float)
        for name, runs in scores.items()
    }


def _draw(axes: Axes, values: Mapping[str, np.ndarray], bins: Sequence[DistanceBin]) -> None:
    for index, (name, value) in enumerate(values.items()):
        # Shifted within a bin, so that error bars do not hide each other.
        x = np.arange(len(bins)) + 0.06 * (index - (len(values) - 1) / 2)
        spread = value.std(0, ddof=1) if len(value) > 1 else None
        axes.errorbar(x, value.mean(0), spread, marker="o", markersize=4, capsize=2, label=name)
    axes.set_xticks(range(len(bins)), [part.span for part in bins])
    axes.grid(alpha=0.3)
