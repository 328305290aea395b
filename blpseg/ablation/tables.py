"""An ablation as a table in the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from blpseg.ablation.results import SCORES, Ablation, Spread
from blpseg.ablation.variants import BASELINE, CEILING


def ablation_table(ablation: Ablation) -> Table:
    """Format the scores for the terminal, in percent: mean and standard deviation over seeds.

    The share of the gap to full supervision is shown if that variant has runs.
    """
    columns = ["mIoU", f"above {BASELINE.name}", "boundary IoU", "Dice"]
    if CEILING.name in ablation.runs:
        columns.append("gap closed")
    table = Table("", "seeds", box=box.SIMPLE_HEAD, title="mean and deviation, in %")
    table.columns[0].no_wrap = True
    for name in columns:
        table.add_column(name, justify="right")
    miou = SCORES["miou"]
    for name, runs in ablation.runs.items():
        gain = None if name == BASELINE.name else ablation.gain(name, miou)
        cells = [
            _percent(ablation.mean(name, miou)),
            "" if gain is None else gain.percent(signed=True),
            _percent(ablation.mean(name, SCORES["boundary_miou"])),
            _percent(ablation.mean(name, SCORES["foreground_dice"])),
        ]
        if CEILING.name in ablation.runs:
            cells.append(_percent(ablation.gap_closed(name, miou)))
        table.add_row(name, str(len(runs)), *cells)
    return table


def _percent(spread: Spread | None) -> str:
    """Format a spread in percent, or "-" if there is none."""
    return "-" if spread is None else spread.percent()
