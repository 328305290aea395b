"""One browser for all tests, and a folder of images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from . import _browser
from ._program import Running, running, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with images disc0, disc1 and disc2."""
    return write_images(tmp_path / "fruit")


@pytest.fixture
def program(root: Path) -> Iterator[Running]:
    """Serve the folder."""
    with running(root) as program:
        yield program


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Start the browser, or skip."""
    if reason := _browser.problem():
        pytest.skip(reason)
    with _browser.browser() as chromium:
        yield chromium


@pytest.fixture
def open_tab(chromium: Any) -> Iterator[Callable[..., _browser.Person]]:
    """Return a function that opens an address in a new tab; no tab may report an error."""
    context = chromium.new_context(viewport={"width": 1200, "height": 760})
    people: list[_browser.Person] = []

    def open_tab(address: str) -> _browser.Person:
        people.append(_browser.Person(context.new_page()))
        people[-1].open(address)
        return people[-1]

    yield open_tab
    context.close()
    assert [person.errors for person in people] == [[] for _ in people]
