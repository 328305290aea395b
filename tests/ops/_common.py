"""Helpers for tests of several ops: memory layouts of a tensor, and programs in a new process."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import blpseg_ops

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Return normal random numbers in float64."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def _wider(x: Tensor) -> Tensor:  # strides of 2 and 3, an offset
    n, c, h, w = x.shape
    storage = torch.full((n + 1, 2 * c, h + 3, 3 * w), math.nan, dtype=x.dtype, device=x.device)
    storage[1:, ::2, 2:-1, 1::3] = x
    return storage[1:, ::2, 2:-1, 1::3]


def _reversed_order(x: Tensor) -> Tensor:  # [N, C, h, w] with w the slowest axis in memory
    return x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)


# For tensors [N, C, h, w] with C >= 2, h and w >= 4. The last four repeat a part of the values.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "reversed order": _reversed_order,
    "strided, with an offset": _wider,
    "one image for all": lambda x: x[:1].expand(x.shape),
    "one channel for all": lambda x: x[:, 1:2].expand(x.shape),
    "one row for all": lambda x: x[..., 3:4, :].expand(x.shape),
    "one pixel for all": lambda x: x[..., 3:4, 3:4].expand(x.shape),
}


def far_apart(x: Tensor, axis: int) -> Tensor:
    """Return the same values with the ends of an axis more than 2^31 elements apart in memory.

    Only the pages that are written take memory.
    """
    strides = [0] * x.dim()
    step = 1
    for other in reversed(range(x.dim())):
        if other != axis:
            strides[other] = step
            step *= x.shape[other]
    strides[axis] = max(step, 2**31 // (x.shape[axis] - 1) + 5)
    last = sum((side - 1) * stride for side, stride in zip(x.shape, strides, strict=True))
    assert last >= 2**31
    far = torch.empty(last + 1, dtype=x.dtype).as_strided(x.shape, strides)
    return far.copy_(x)


def run_program(
    program: str, timeout: float | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python program that may import blpseg_ops and tests; `timeout` is in seconds."""
    roots = (Path(blpseg_ops.__file__).parent.parent, Path(__file__).parents[2])
    path = [*map(str, roots), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# Start of a program that measures memory; Linux only. beyond(function) is the peak in MiB that a
# call adds, without the tensors that it returns.
MEASURE = """
import torch
def peak():  # KiB
    return next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line)
def beyond(function):
    open("/proc/self/clear_refs", "w").write("5")  # reset the high-water mark
    before = peak()
    made = function()
    return (peak() - before) / 1024 - sum(x.nbytes for x in made) / 2**20
"""
