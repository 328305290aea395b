"""Print an inspection on the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blpseg.scribbles.inspection import Inspection

_SIZES, _PROBLEMS = 3, 20


def print_inspection(inspection: Inspection) -> None:
    """Print the figures first and the problems last."""
    console = Console(soft_wrap=True, highlight=False)
    part = f", {inspection.split}" if inspection.split else ""
    console.print(f"{escape(inspection.root)}{part}: {inspection.images} images")
    sizes = [f"{size} ({count})" for size, count in list(inspection.sizes.items())[:_SIZES]]
    more = len(inspection.sizes) - len(sizes)
    console.print(f"sizes: {', '.join(sizes)}{f', and {more} others' if more > 0 else ''}")
    if inspection.labeled_shares:
        shares = inspection.labeled_shares
        console.print(
            f"labeled: {inspection.labeled_share:.2%} of the pixels (images: {shares[0]:.2%} to "
            f"{shares[-1]:.2%}; people: 2 to 5 %)"
        )
    console.print(_class_table(inspection))
    if inspection.statistics is not None:
        contradicting = inspection.statistics.contradicting_share
        console.print(f"against the masks of {inspection.measured} images:")
        console.print(
            f"{contradicting:.2%} of the scribbled pixels contradict the mask (people: 0.1 to 1 %)"
        )
        console.print("distance of pixels to their region's border, and share within 5 px of it:")
        console.print(_preference_table(inspection))
    for kind, lines in (("note", inspection.notes()), ("warning", inspection.warnings())):
        for line in lines:
            console.print(f"{kind}: {escape(line)}")
    count = len(inspection.problems)
    console.print(f"{count} problem{'' if count == 1 else 's'}{':' if count else ''}")
    for line in inspection.problems[:_PROBLEMS]:
        console.print(f"  {escape(line)}")
    if count > _PROBLEMS:
        console.print(f"  ... and {count - _PROBLEMS} more")


def _class_table(inspection: Inspection) -> Table:
    table = Table("class", box=box.SIMPLE_HEAD)
    for title in ("images", "scribbled pixels"):
        table.add_column(title, justify="right")
    rows = zip(inspection.classes, inspection.class_images, inspection.class_pixels, strict=True)
    for name, images, pixels in rows:
        table.add_row(escape(name), str(images), str(pixels))
    return table


def _preference_table(inspection: Inspection) -> Table:
    table = Table("", box=box.SIMPLE_HEAD)
    for title in ("all, px", "scribbled, px", "all, near", "scribbled, near"):
        table.add_column(title, justify="right")
    for name, (region, scribbles) in inspection.preference().items():
        table.add_row(
            escape(name),
            f"{region.mean:.1f}",
            f"{scribbles.mean:.1f}",
            f"{region.near_share:.1%}",
            f"{scribbles.near_share:.1%}",
        )
    return table
