"""README and CONTRIBUTING are true: examples run, figures are those of the result file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import report

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
def test_figures_are_those_of_the_result_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables of the pages equal the result files that `benchmarks.report` makes them from."""
    result_file = str(ROOT / "benchmarks/results" / name)
    monkeypatch.setattr("sys.argv", ["benchmarks.report", "--check", result_file])
    report.main()  # exits where a page differs
