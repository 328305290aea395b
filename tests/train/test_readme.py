"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example: str) -> None:
    namespace: dict[str, object] = {}
    exec(compile(example, str(README), "exec"), namespace)
    labels = namespace["labels"]
    assert labels.shape == (2, 96, 96)
    assert str(labels.dtype) == "torch.uint8"
