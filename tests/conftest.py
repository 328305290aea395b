"""Run the tests on all cores if pytest-xdist is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MAX_WORKERS = 8  # each imports torch: 0.5 GB

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers use all cores already. Tests of threads set their number themselves.
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Set ``-n`` where folders are tested; a single file takes less time than workers' start.

    ``pytest -n 0`` runs everything in one process.
    """
    folders = all(Path(argument).is_dir() for argument in config.args)
    if (
        config.pluginmanager.hasplugin("xdist")
        and config.option.numprocesses is None
        and config.option.capture != "no"  # workers' output is not shown
        and "PYTEST_XDIST_WORKER" not in os.environ
        and folders
    ):
        config.option.numprocesses = "logical"
        config.option.maxprocesses = MAX_WORKERS
        config.option.dist = "worksteal"
