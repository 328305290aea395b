"""Every public name has an example in its docstring that prints what it says."""

from __future__ import annotations

import doctest
import inspect
from typing import Any

import pytest
import torch

import blpseg_ops

PUBLIC = [
    blpseg_ops.backends.available,
    *(
        value
        for name in blpseg_ops.__all__
        if callable(value := getattr(blpseg_ops, name)) and value is not blpseg_ops.BLPObjective
    ),
]  # BLPObjective is a result; blp_objective's example shows one


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_example(thing: Any) -> None:
    names = {"torch": torch, "blpseg_ops": blpseg_ops}
    text = inspect.getdoc(thing)
    assert text is not None
    example = doctest.DocTestParser().get_doctest(text, names, thing.__name__, None, None)
    assert example.examples, "no example"
    said: list[str] = []
    failed, _ = doctest.DocTestRunner().run(example, out=said.append)
    assert not failed, "".join(said)


@pytest.mark.parametrize("thing", PUBLIC, ids=lambda thing: thing.__name__)
def test_says_what_it_raises_and_where_it_is_from(thing: Any) -> None:
    text = inspect.getdoc(thing)
    assert text is not None
    if inspect.signature(thing).parameters.keys() & {"sigma", "target", "gamma"}:
        assert "Raises:" in text
        assert "Source: Wang et al. 2023" in text
