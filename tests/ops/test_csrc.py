"""The layout of csrc/: what files that are compiled once per capability may include."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
INCLUDE = re.compile(r"^\s*#\s*include\s+(?:<([^>]+)>|\"([^\"]+)\")", re.MULTILINE)
ALLOWED = {
    "stdint.h",
    "immintrin.h",
}  # types and intrinsics; neither contains functions of a library

pytestmark = pytest.mark.skipif(not CSRC.exists(), reason="no source of the kernels")


def _foreign_headers(file: Path) -> set[str]:
    """Return each <header> that a file includes, directly or through our own headers."""
    foreign: set[str] = set()
    seen: set[Path] = set()
    todo = [file]
    while todo:
        file = todo.pop()
        if file in seen:
            continue
        seen.add(file)
        for angled, quoted in INCLUDE.findall(file.read_text()):
            if angled:
                foreign.add(angled)
            else:
                neighbor = file.parent / quoted
                todo.append(neighbor if neighbor.exists() else CSRC / quoted)
    return foreign


@pytest.mark.parametrize("file", sorted((CSRC / "cpu/kernels").glob("*")), ids=lambda f: f.name)
def test_files_compiled_once_per_capability_include_no_library(file: Path) -> None:
    """An inline function of a library, compiled for AVX-512, could replace everyone else's.

    The linker keeps one copy of an inline function, whichever it meets first.
    """
    assert _foreign_headers(file) <= ALLOWED


def test_includes_are_followed_through_our_own_headers() -> None:
    headers = _foreign_headers(CSRC / "cpu/lam/lam.cpp")
    assert {"tuple", "stdint.h", "torch/csrc/stable/tensor.h"} <= headers
