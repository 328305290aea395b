"""Peak memory of one peer: ``python -m benchmarks.memory NAME PEER < cases.json``.

On the CPU a peer runs in a process of its own, where it can't reuse memory that others have left
and theirs is not counted. ``NAME_cases`` defines ``Case``, ``make_inputs`` and ``call``;
``NAME_peers`` defines ``PEERS`` and ``COMPILES``.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

C = TypeVar("C", bound=tuple[Any, ...])


def measure_peaks(name: str, peer: str, cases: Sequence[C]) -> dict[C, int]:
    """Return each case's peak bytes beyond inputs and outputs; an empty dict unless on Linux.

    Cases run in this order; larger ones must come last.
    """
    if not Path("/proc/self/clear_refs").exists():
        return {}
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", name, peer],
        input=json.dumps(cases),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        check=True,
        text=True,
    )
    return dict(zip(cases, json.loads(process.stdout), strict=True))


def _peak(name: str, peer: str, fields: list[Any]) -> int:
    cases, peers = (import_module(f"benchmarks.{name}_{part}") for part in ("cases", "peers"))
    case = cases.Case(*fields)
    inputs = cases.make_inputs(case)
    run = peers.PEERS[peer](case)
    if peer in peers.COMPILES:
        cases.call(run, case, inputs)
    else:  # a small call loads libraries and starts threads
        small = case.shrunk()
        cases.call(peers.PEERS[peer](small), small, cases.make_inputs(small))
    return _peak_on_cpu(lambda: cases.call(run, case, inputs))


def _peak_on_cpu(function: Callable[[], tuple[Tensor, ...]]) -> int:
    """Largest resident memory during a call, less what was there before and what it returns."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory must not hide what the call needs
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    outputs = function()
    return _status("VmHWM") - before - sum(output.nbytes for output in outputs)


def peak_on_cuda(function: Callable[[], tuple[Tensor, ...]]) -> int:
    """Largest memory that torch has allocated on the device during a call, likewise."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = function()
    peak = torch.cuda.max_memory_allocated()
    return peak - before - sum(output.nbytes for output in outputs)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps([_peak(*sys.argv[1:], fields) for fields in json.load(sys.stdin)]))
