"""blpseg_ops imports torch, the standard library and, if installed, Triton; nothing else."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import blpseg_ops


def test_imports_nothing_but_torch() -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "triton", "blpseg_ops"}
    files = list(Path(blpseg_ops.__file__).parent.rglob("*.py"))
    assert len(files) > 15
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: a relative import"
                names = [node.module or ""]
            else:
                continue
            for name in names:
                assert name.split(".")[0] in allowed, f"{file} imports {name}"
