"""docs/architecture.md names files and functions that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
HOPS = re.findall(r"^\| \d+ \| `([^`]+)` \| `([^`]+)` \|", PAGE, re.MULTILINE)
PATHS = sorted(
    set(re.findall(r"`((?:blpseg_ops|blpseg|csrc|tests|benchmarks|docs|examples)/[^`]*)`", PAGE))
)


def test_there_are_hops() -> None:
    assert len(HOPS) > 15


@pytest.mark.parametrize(("path", "name"), HOPS)
def test_hop(path: str, name: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / path).read_text())


@pytest.mark.parametrize("path", PATHS)
def test_path(path: str) -> None:
    assert (ROOT / path).exists()
