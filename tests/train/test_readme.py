"""README and CONTRIBUTING are true: examples run, figures are those of the result file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
EXAMPLES = CODE.findall(README.read_text())


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example: str) -> None:
    namespace: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), namespace)
    labels = namespace["labels"]
    assert labels.shape == (2, 96, 96)
    assert str(labels.dtype) == "torch.uint8"


def test_contributing_shows_the_pattern_as_it_is_tested() -> None:
    (shown,) = CODE.findall((ROOT / "CONTRIBUTING.md").read_text())
    assert (ROOT / "tests/ops/test_pattern.py").read_text().endswith(shown)


@pytest.mark.parametrize("name", ["cpu.json", "demo.json"])
def test_figures_are_those_of_the_result_file(name: str) -> None:
    """The tables of the pages equal the result files that `benchmarks.report` makes them from."""
    check = [sys.executable, "-m", "benchmarks.report", "--check", f"benchmarks/results/{name}"]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
