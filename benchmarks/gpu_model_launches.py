"""What ``lam`` launches for a problem, and how often each loop of each kernel runs.

``TRITON_INTERPRET=1 python -m benchmarks.gpu_model_launches < cases.json`` runs the product's own
code in Triton's interpreter, on one image of each problem. All kernels that prepare and list tiles
run as they are, those that list only for a sample of query blocks; of the loops of the two main
kernels only the first iteration runs, since their lengths are all that is wanted. So the counts are
those of the kernels' own lists on real photos, whatever rule makes these.

Written is, for every problem, a list of launches as ``Launch`` describes.
"""

from __future__ import annotations

import json
import operator
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.lam_cuda_cases import Case, make_inputs

MAIN = ("forward_kernel", "backward_kernel")  # of which loops are not run to their end
LISTING = ("list_kernel", "refine_kernel")  # of which a sample of programs is run
SAMPLES = 16

Chain = tuple[tuple[str, int], ...]  # as in gpu_model_sass


class Launch(NamedTuple):
    """One launch of a Triton kernel, or one operator of torch, for one image."""

    phase: str  # "forward" or "backward"
    module: str  # of the kernel; "" for an operator of torch
    kernel: str
    grid: list[int]
    arguments: dict[str, Any]  # number or flag; of a tensor [dtype, address, shape]
    options: dict[str, int]  # num_warps, num_stages, maxnreg
    loops: list[tuple[Chain, float, bool]]  # iterations per program; whether outermost
    bytes: int  # of an operator of torch: inputs and outputs


def launches(case: Case) -> list[Launch]:
    """Record what one image's forward and, if asked for, backward pass launches."""
    from blpseg_ops.triton.lam import lam, lam_backward

    features, values, gradient = (x.detach() for x in make_inputs(case._replace(n=1), "cpu"))
    numbers = case.sigma, case.eps, 1.0, case.radius
    recorder = _Recorder()
    with recorder.recording("forward"):
        lam(features, values, *numbers)
    if case.backward:
        # The main kernels did not run, so forward's results come from the CPU's kernels.
        output, log_denominator = torch.ops.blpseg.lam(features.float(), values.float(), *numbers)
        with recorder.recording("backward"):
            lam_backward(
                gradient, features, values, output.to(values.dtype), log_denominator, *numbers
            )
    return recorder.found


class _Recorder:
    def __init__(self) -> None:
        self.found: list[Launch] = []
        self.phase = ""
        self.running: _Loops | None = None  # of the kernel that is running

    @contextmanager
    def recording(self, phase: str) -> Iterator[None]:
        """Record all launches inside of this context."""
        from triton.runtime.interpreter import InterpretedFunction

        import blpseg_ops.triton

        self.phase = phase
        with ExitStack() as stack:
            run = partial(self._run, InterpretedFunction.run)
            stack.enter_context(
                patch.object(InterpretedFunction, "run", lambda kernel, *a, **k: run(kernel, a, k))
            )
            for info in iter_modules(blpseg_ops.triton.__path__, "blpseg_ops.triton."):
                module = import_module(info.name)
                stack.enter_context(patch.object(module, "range", self._range, create=True))
            stack.enter_context(_Operators(self))
            yield

    def _run(self, run: Any, kernel: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        from triton.runtime import interpreter

        grid = [*named["grid"], 1, 1][:3]
        name = kernel.fn.__name__
        sample = list(range(grid[0]))
        if name in LISTING + MAIN and len(sample) > SAMPLES:
            sample = [(2 * i + 1) * grid[0] // (2 * SAMPLES) for i in range(SAMPLES)]
        builder = interpreter.interpreter_builder
        set_size, set_place = builder.set_grid_dim, builder.set_grid_idx
        self.running = _Loops(whole=name not in MAIN)
        with (
            patch.object(builder, "set_grid_dim", lambda *_: set_size(*grid)),
            patch.object(builder, "set_grid_idx", lambda x, y, z: set_place(sample[x], y, z)),
        ):
            run(kernel, *given, **{**named, "grid": (len(sample), *grid[1:])})
        arguments = dict(zip(kernel.arg_names, given, strict=False))
        arguments |= {key: value for key, value in named.items() if key in kernel.arg_names}
        options = {
            key: named[key] for key in ("num_warps", "num_stages", "maxnreg") if key in named
        }
        programs = len(sample) * grid[1] * grid[2]
        self.found.append(
            Launch(
                self.phase,
                kernel.fn.__module__,
                name,
                grid,
                {key: _described(value) for key, value in arguments.items()},
                options,
                self.running.per_program(programs),
                0,
            )
        )
        self.running = None

    def _range(self, *bounds: Any) -> Iterator[int]:
        values = range(*map(operator.index, bounds))
        if self.running is None:
            return iter(values)
        return self.running.iterate(_chain(sys._getframe(1)), values)


class _Loops:
    """Counts the iterations of loops while programs of one kernel run."""

    def __init__(self, whole: bool) -> None:
        self.whole = whole  # False: only the first iteration of each loop is executed
        self.active: list[Chain] = []
        self.parents: dict[Chain, Chain | None] = {}
        self.wanted: Counter[Chain] = Counter()
        self.executed: Counter[Chain] = Counter()

    def iterate(self, loop: Chain, values: range) -> Iterator[int]:
        """Go through the values, or the first of them, and count them all."""
        self.parents.setdefault(loop, self.active[-1] if self.active else None)
        self.wanted[loop] += len(values)
        for value in values if self.whole else values[:1]:
            self.executed[loop] += 1
            self.active.append(loop)
            yield value
            self.active.pop()

    def per_program(self, programs: int) -> list[tuple[Chain, float, bool]]:
        """Iterations of every loop per program, those of its enclosing loops multiplied in."""

        def count(loop: Chain) -> float:
            parent = self.parents[loop]
            if parent is None:
                return self.wanted[loop] / programs
            return self.wanted[loop] / max(self.executed[parent], 1) * count(parent)

        return [(loop, count(loop), parent is None) for loop, parent in self.parents.items()]


class _Operators(TorchDispatchMode):
    """Records operators of torch that would be kernels on a device."""

    NO_KERNEL = (
        "empty view reshape select slice unbind expand detach transpose permute alias squeeze"
    )

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if self.recorder.running is None and not any(
            name.strip("_").removeprefix("new_").startswith(word) for word in self.NO_KERNEL.split()
        ):
            tensors = [x for x in (*args, result) if isinstance(x, torch.Tensor)]
            size = sum(x.numel() * x.element_size() for x in tensors)
            self.recorder.found.append(
                Launch(self.recorder.phase, "", f"torch {name}", [1], {}, {}, [], size)
            )
        return result


def _chain(frame: Any) -> Chain:
    """Where a loop stands, and from where its function was called, up to the kernel."""
    found = []
    while frame is not None:
        if Path(frame.f_code.co_filename).parent.name == "triton" and (
            Path(frame.f_code.co_filename).parent.parent.name == "blpseg_ops"
        ):
            found.append((frame.f_code.co_filename, frame.f_lineno))
        elif frame.f_code.co_name == "_run":
            break
        frame = frame.f_back
    return tuple(found)


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return [str(value.dtype).removeprefix("torch."), value.data_ptr(), list(value.shape)]
    return value


if __name__ == "__main__":
    for fields in json.load(sys.stdin):
        print(json.dumps(launches(Case(*fields))), flush=True)
