"""Write the tables and the plot that come from a result file.

``python -m benchmarks.report benchmarks/results/cpu.json`` fills README.md, docs/performance.md
and benchmarks/results/goals.md; ``demo.json`` fills README.md and docs/ablation.md;
``two-grids.json`` fills docs/performance.md; ``interactive.json``, ``segmenter-init.json`` and
``next-stroke.json`` fill docs/segmenter.md; ``query-stride.json`` and ``query-stride-2.json`` fill
docs/evaluation.md. Each report fills its place, from ``<!-- NAME:begin -->`` to
``<!-- NAME:end -->``; all other text stays.
With ``--check`` nothing is written, and the command fails if a table differs from the result file.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    plot_lam,
    report_demo,
    report_interactive,
    report_lam,
    report_losses,
    report_overhead,
    report_query_stride,
    report_readme,
    report_step,
    report_two_grids,
)

ROOT = Path(__file__).parents[1]

Report = Callable[[dict[str, Any]], str]


def machine(result: dict[str, Any]) -> str:
    """Say in one sentence where and with what the result file was made."""
    info = result["machine_info"]
    return (
        f"{info['cpu']}, {info['threads']} threads; torch {info['torch']}, Python "
        f"{info['python']}, blpseg {info['blpseg']} built with {info['native']['compiler']}."
    )


# Name of a result file, and the places in each page that it fills.
PAGES: dict[str, dict[str, dict[str, Report]]] = {
    "cpu.json": {
        "README.md": {"figures": report_readme.report},
        "docs/performance.md": {
            "machine": machine,
            "lam": report_lam.report,
            "losses": report_losses.report,
            "step": report_step.report,
            "overhead": report_overhead.report,
        },
        "benchmarks/results/goals.md": {
            "machine": machine,
            "lam": report_lam.goals,
            "losses": report_losses.goals,
        },
    },
    "demo.json": {
        "README.md": {"demo": report_demo.report},
        "docs/ablation.md": {"demo": report_demo.by_distance},
    },
    "two-grids.json": {"docs/performance.md": {"two-grids": report_two_grids.report}},
    "interactive.json": {"docs/segmenter.md": {"interactive": report_interactive.report}},
    "segmenter-init.json": {"docs/segmenter.md": {"starts": report_interactive.starts}},
    "next-stroke.json": {"docs/segmenter.md": {"next-stroke": report_interactive.next_stroke}},
    "query-stride.json": {"docs/evaluation.md": {"query-stride": report_query_stride.report}},
    "query-stride-2.json": {"docs/evaluation.md": {"query-stride-2": report_query_stride.report}},
}


def main() -> None:
    """Fill or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result_file", type=Path)
    parser.add_argument("--check", action="store_true", help="Fail if a page differs.")
    options = parser.parse_args()
    result = json.loads(options.result_file.read_text())
    stale = []
    pages = PAGES.get(options.result_file.name)
    if pages is None:
        parser.error(f"{options.result_file}: expected a file named {' or '.join(PAGES)}")
    for name, reports in pages.items():
        page = filled = (ROOT / name).read_text()
        for place, report in reports.items():
            filled = _fill(filled, name, place, report(result))
        if options.check and page != filled:
            stale.append(name)
        elif not options.check:
            (ROOT / name).write_text(filled)
    if stale:
        parser.exit(1, f"not the figures of {options.result_file}: {', '.join(stale)}\n")
    if not options.check and options.result_file.name == "cpu.json":
        plot_lam.draw(result)


def _fill(page: str, name: str, place: str, text: str) -> str:
    begin, end = f"<!-- {place}:begin -->", f"<!-- {place}:end -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{name} must have exactly one place {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


if __name__ == "__main__":
    main()
