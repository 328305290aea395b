"""Peak memory of one peer of ``lam``, as ``python -m benchmarks.lam_memory PEER < cases.json``.

It runs in a process of its own, where nobody else's memory can be reused or counted.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from torch import Tensor

from benchmarks.lam_cases import Case, call, make_inputs
from benchmarks.lam_peers import COMPILES, PEERS


def measure_peaks(peer: str, cases: Iterable[Case]) -> dict[Case, int]:
    """Peak bytes beyond inputs and outputs for each case; none where the system is not Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    ordered = sorted(cases, key=lambda case: (case.pixels, case.backward))
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.lam_memory", peer],
        input=json.dumps(ordered),
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        check=True,
        text=True,
    )
    return dict(zip(ordered, json.loads(process.stdout), strict=True))


def _peak(peer: str, case: Case) -> int:
    inputs = make_inputs(case)
    run = PEERS[peer](case)
    if peer in COMPILES:
        call(run, case, inputs)
    else:  # a small call loads libraries and starts threads as well
        small = case._replace(h=8, w=8)
        call(PEERS[peer](small), small, make_inputs(small))
    return _most_beyond(lambda: call(run, case, inputs))


def _most_beyond(function: Callable[[], tuple[Tensor, ...]]) -> int:
    """Most resident memory during a call, less what was there and what it returns."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed must not hide what the call needs
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    outputs = function()
    return _status("VmHWM") - before - sum(output.nbytes for output in outputs)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(json.dumps([_peak(sys.argv[1], Case(*case)) for case in json.load(sys.stdin)]))
