"""Write the tables and the plot that come from a result file of the benchmarks.

``python -m benchmarks.report benchmarks/results/cpu.json`` fills README.md, docs/performance.md
and benchmarks/results/goals.md. Each report fills its place, from ``<!-- NAME:begin -->`` to
``<!-- NAME:end -->``; all other text stays. ``interactive.json`` fills docs/segmenter.md.
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
    report_interactive,
    report_lam,
    report_losses,
    report_overhead,
    report_readme,
    report_step,
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


PAGES: dict[str, dict[str, Report]] = {
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
}

INTERACTIVE_PAGES: dict[str, dict[str, Report]] = {
    "docs/segmenter.md": {"interactive": report_interactive.report},
}


def main() -> None:
    """Fill or check all pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result_file", type=Path)
    parser.add_argument("--check", action="store_true", help="Fail if a page differs.")
    options = parser.parse_args()
    result = json.loads(options.result_file.read_text())
    is_interactive = "benchmarks" not in result  # not a file of pytest-benchmark
    stale = []
    for name, reports in (INTERACTIVE_PAGES if is_interactive else PAGES).items():
        page = filled = (ROOT / name).read_text()
        for place, report in reports.items():
            filled = _fill(filled, name, place, report(result))
        if options.check and page != filled:
            stale.append(name)
        elif not options.check:
            (ROOT / name).write_text(filled)
    if stale:
        parser.exit(1, f"not the figures of {options.result_file}: {', '.join(stale)}\n")
    if not options.check and not is_interactive:
        plot_lam.draw(result)


def _fill(page: str, name: str, place: str, text: str) -> str:
    begin, end = f"<!-- {place}:begin -->", f"<!-- {place}:end -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{name} must have exactly one place {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


if __name__ == "__main__":
    main()
