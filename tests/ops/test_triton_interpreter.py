"""Runs the tests of LAM's Triton kernels in Triton's interpreter, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="no Triton for this platform")

FILES = ("test_lam_triton.py", "test_lam_tensor_cores.py")


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="this is the interpreter's process"
)
def test_in_the_interpreter() -> None:
    # The interpreter uses one thread, so the files run side by side.
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", "--quiet", Path(__file__).parent / file],
            env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for file in FILES
    ]
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
