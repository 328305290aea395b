"""Plots of where scribbles are: per class, per image, within regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from blpseg.data.scribble_statistics import DistanceSums

_REGION, _SCRIBBLE = "#888888", "#c0392b"
_SHOWN = 0.99  # share of the pixels that the plot's x axis covers
_STEP = 0.0025  # bin width of the histogram of labeled shares
_DPI = 110


def plot_classes(
    classes: Sequence[str],
    class_images: Sequence[int],  # K
    labeled_shares: Sequence[float],
) -> Figure:
    """Plot how many images have scribbles of each class, and the labeled share per image."""
    height = max(3.2, 0.17 * len(classes) + 1)
    figure = Figure((8, height), dpi=_DPI, layout="constrained")
    bars, shares = figure.subplots(1, 2, width_ratios=(3, 2))
    places = np.arange(len(classes))
    drawn = bars.barh(places, class_images, color=_SCRIBBLE, height=0.7)
    bars.bar_label(drawn, padding=2, fontsize=7)
    bars.set_yticks(places, classes, fontsize=8)
    bars.margins(x=0.12, y=0.01)
    bars.invert_yaxis()
    bars.set_xlabel("images with a scribble of the class")
    edges = np.arange(0, max(labeled_shares) + _STEP, _STEP)
    shares.hist(labeled_shares, edges, color=_SCRIBBLE)
    shares.xaxis.set_major_formatter(PercentFormatter(1))
    shares.yaxis.set_major_locator(MaxNLocator(integer=True))
    shares.set_xlabel("labeled share of the image")
    shares.set_ylabel("images")
    for axes in (bars, shares):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_preference(preference: Mapping[str, tuple[DistanceSums, DistanceSums]]) -> Figure:
    """Plot the distance to the region's border, for all pixels and for scribbled pixels.

    Args:
        preference: Per panel title, the sums over all pixels and over scribbled pixels.
    """
    figure = Figure((8, 3.2), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(preference), squeeze=False)[0]
    for axes, (title, (region, scribbles)) in zip(panels, preference.items(), strict=True):
        for name, sums, color in (
            ("all pixels", region, _REGION),
            ("scribbled pixels", scribbles, _SCRIBBLE),
        ):
            if not sums.pixels:
                continue
            shares = np.array(sums.histogram) / sums.pixels
            label = f"{name}: mean {sums.mean:.0f} px, {sums.near_share:.1%} within 5 px"
            axes.stairs(shares, np.arange(len(shares) + 1), color=color, label=label, lw=1.5)
            axes.axvline(sums.mean, color=color, ls=":", lw=1)
        reach = np.searchsorted(np.cumsum(region.histogram), _SHOWN * region.pixels) + 1
        axes.set_xlim(0, reach)
        axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("distance to the region's border, px")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.legend(fontsize=7, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share of pixels")
    return figure
