"""Writes tables and plots into docs/performance.md, from the result file that the benchmarks wrote.

As ``python -m benchmarks.report benchmarks/results/cpu.json``. Every report fills its place in the
page, from ``<!-- NAME:begin -->`` to ``<!-- NAME:end -->``; all other text is left alone.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import report_lam, report_losses, report_overhead, report_step

PAGE = Path(__file__).parents[1] / "docs/performance.md"


def machine(result: dict[str, Any]) -> str:
    """One sentence on where and with what the result file was made."""
    info = result["machine_info"]
    return (
        f"{info['cpu']}, {info['threads']} threads; torch {info['torch']}, Python "
        f"{info['python']}, blpseg {info['blpseg']} built with {info['native']['compiler']}."
    )


REPORTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "machine": machine,
    "lam": report_lam.report,
    "losses": report_losses.report,
    "step": report_step.report,
    "overhead": report_overhead.report,
}


def main(result_file: str) -> None:
    """Fill every report's place in the page."""
    result = json.loads(Path(result_file).read_text())
    page = PAGE.read_text()
    for name, report in REPORTS.items():
        page = _fill(page, name, report(result))
    PAGE.write_text(page)


def _fill(page: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(f"{begin}.*?{end}", re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"{PAGE} must have one place {begin} ... {end}")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)


if __name__ == "__main__":
    main(*sys.argv[1:])
