"""Peak memory of one peer, as ``python -m benchmarks.memory NAME PEER < cases.json``.

It runs in a process of its own, where nobody else's memory can be reused or counted. What is called
is found by name: ``NAME_cases`` has ``Case``, ``make_inputs`` and ``call``, ``NAME_peers`` has
``PEERS`` and ``COMPILES``.
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
    """Peak bytes beyond inputs and outputs for each case; none where the system is not Linux.

    Cases run in this order: the larger ones shall come last.
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
    else:  # a small call loads libraries and starts threads as well
        small = case.shrunk()
        cases.call(peers.PEERS[peer](small), small, cases.make_inputs(small))
    most_beyond = _most_beyond_on_cuda if inputs[0].is_cuda else _most_beyond
    return most_beyond(lambda: cases.call(run, case, inputs))


def _most_beyond(function: Callable[[], tuple[Tensor, ...]]) -> int:
    """Most resident memory during a call, less what was there and what it returns."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed must not hide what the call needs
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    outputs = function()
    return _status("VmHWM") - before - sum(output.nbytes for output in outputs)


def _most_beyond_on_cuda(function: Callable[[], tuple[Tensor, ...]]) -> int:
    """The same of what torch has allocated on the device."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    outputs = function()
    most = torch.cuda.max_memory_allocated()
    return most - before - sum(output.nbytes for output in outputs)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps([_peak(*sys.argv[1:], fields) for fields in json.load(sys.stdin)]))
