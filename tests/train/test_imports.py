"""Modules of the package import each other in one direction."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "blpseg").rglob("*.py")
}


def imports(source: str, modules: set[str]) -> Iterator[str]:
    """List the modules that a source imports at any place: in functions and for annotations too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found = name if name in modules else node.module
                if found in modules:
                    yield found


def order(sources: dict[str, str]) -> list[str]:
    """Sort the modules so that each comes after those that it imports."""
    graph = {name: {*imports(source, {*sources})} for name, source in sources.items()}
    return [*TopologicalSorter(graph).static_order()]


def test_no_import_circle() -> None:
    sources = {name: path.read_text() for name, path in FILES.items()}
    assert len(sources) > 50
    assert set(order(sources)) == set(sources)


def test_a_circle_is_found() -> None:
    with pytest.raises(CycleError):
        order({"a": "import b", "b": "def f():\n    from c import x", "c": "from a import y"})


def test_commands_are_listed_and_the_page_is_served_without_torch() -> None:
    """`blpseg --help` imports no module that takes seconds; `blpseg draw` does so in a thread."""
    code = (
        "import sys; from blpseg.cli import main; main(['--help']); "
        "from importlib.util import find_spec; "
        "find_spec('uvicorn') and find_spec('starlette') and __import__('blpseg.draw.server'); "
        "import blpseg.draw.session; print({'torch', 'timm'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("set()\n")
