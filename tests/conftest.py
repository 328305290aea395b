"""Run the tests on all cores if pytest-xdist is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MAX_WORKERS = 8  # each imports torch: 0.5 GB
LONGEST = ("test_in_the_interpreter", "test_passes_the_cpus_tests")  # half a minute and more each

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers use all cores already. Tests of threads set their number themselves.
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Set ``-n``, but not for a single file: it takes less time than the start of workers.

    ``pytest -n 0`` runs everything in one process.
    """
    single_file = len(config.args) == 1 and not Path(config.args[0]).is_dir()
    if (
        config.pluginmanager.hasplugin("xdist")
        and config.option.numprocesses is None
        and config.option.capture != "no"  # workers' output is not shown
        and "PYTEST_XDIST_WORKER" not in os.environ
        and not single_file
    ):
        config.option.numprocesses = "logical"
        config.option.maxprocesses = MAX_WORKERS
        config.option.dist = "worksteal"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest tests, so that no worker ends with one."""
    items.sort(key=lambda item: not item.name.startswith(LONGEST))
