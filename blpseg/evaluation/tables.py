"""Scores as tables in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from blpseg.metrics import DistanceBin, Scores, percent


def scores_table(scores: Scores) -> RenderableType:
    """Format scores for the terminal: IoU per class, and accuracy by distance if measured."""
    summary = f"mIoU {percent(scores.miou)} % over {scores.images} images"
    columns = {"IoU %": scores.iou}
    if scores.boundary_iou:
        summary += f"; boundary IoU {percent(scores.boundary_miou)} %"
        columns["boundary IoU %"] = scores.boundary_iou
    iou = _table("class", *columns)
    for name in scores.iou:
        iou.add_row(name, *(percent(values[name]) for values in columns.values()))
    parts = [summary, iou]
    for title, bins in (
        ("Accuracy by distance to the nearest scribble", scores.by_scribble_distance),
        ("Accuracy by distance to the region's border", scores.by_border_distance),
    ):
        if bins:
            parts += [title, _distance_table(bins)]
    return Group(*parts)


def _distance_table(bins: list[DistanceBin]) -> Table:
    table = _table("distance, px", "accuracy %", "pixels")
    for part in bins:
        table.add_row(part.span, percent(part.accuracy), str(part.pixels))
    return table


def _table(first: str, *numbers: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD)
    for name in numbers:
        table.add_column(name, justify="right")
    return table
