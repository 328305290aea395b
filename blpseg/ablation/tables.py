"""An ablation as a table in the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from blpseg.ablation.results import Ablation, Spread
from blpseg.ablation.variants import BASELINE


def ablation_table(ablation: Ablation) -> Table:
    """Format the scores for the terminal, in percent: mean and standard deviation over seeds."""
    seeds = len(ablation.runs[BASELINE.name])
    table = Table("", box=box.SIMPLE_HEAD, title=f"{seeds} seed{'s' if seeds > 1 else ''}, in %")
    columns = ("mIoU", f"above {BASELINE.name}", "boundary IoU")
    for name in columns:
        table.add_column(name, justify="right")
    for name in ablation.runs:
        gain = None if name == BASELINE.name else ablation.gain(name)
        table.add_row(
            name,
            _percent(ablation.miou(name)),
            "" if gain is None else gain.percent(signed=True),
            _percent(ablation.boundary_miou(name)),
        )
    return table


def _percent(spread: Spread | None) -> str:
    """Format a spread in percent, or "-" if there is none."""
    return "-" if spread is None else spread.percent()
