"""Kernels compiled for the model's chip, which need not be there."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_model_chip import ctas_per_sm
from benchmarks.gpu_model_launches import Launch
from benchmarks.gpu_model_sass import Cost, Instruction, Loop, loops, parse

ARCH = 90  # compute capability 9.0
ROOT = Path(__file__).parents[1]
_TYPES = {
    "float32": "fp32",
    "float64": "fp64",
    "bfloat16": "bf16",
    "float16": "fp16",
    "int32": "i32",
    "int64": "i64",
    "bool": "i1",
    "uint8": "u8",
}


class Compiled(NamedTuple):
    """A kernel's machine code and what it takes of an SM."""

    name: str
    whole: Loop
    registers: int  # per thread
    stack: int  # bytes per thread
    shared_memory: int  # bytes per CTA
    warps: int  # per CTA

    @property
    def ctas(self) -> int:
        """CTAs that an SM holds at a time."""
        return ctas_per_sm(self.registers, self.shared_memory, 32 * self.warps)


class Work(NamedTuple):
    """A launch, before its time is predicted."""

    name: str
    phase: str  # "forward" or "backward"
    compiled: Compiled
    cost: Cost  # of one warp
    programs: float
    hbm_bytes: float  # arguments, each once


def compile_launch(launch: Launch) -> Compiled:
    """Compile a Triton kernel with the types, constants and alignments of a recorded launch."""
    chosen = _specialized(launch.module, launch.kernel, launch.arguments)
    return _compile(json.dumps([launch.module, launch.kernel, chosen, launch.options]))


def _specialized(module: str, kernel: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Type of every argument as Triton's launcher chooses it, and constants' values."""
    parameters = getattr(import_module(module), kernel).params
    chosen: dict[str, Any] = {}
    for parameter in parameters:
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            chosen[parameter.name] = ["constexpr", value]
        elif isinstance(value, list):
            dtype, address, _ = value
            chosen[parameter.name] = [f"*{_TYPES[dtype]}", address % 16 == 0]
        elif isinstance(value, float):
            chosen[parameter.name] = ["fp32", False]
        elif value == 1 and not parameter.do_not_specialize:
            chosen[parameter.name] = ["constexpr", 1]
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
            chosen[parameter.name] = [kind, aligned]
    return chosen


@cache
def _compile(key: str) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name, chosen, options = json.loads(key)
    kernel = getattr(import_module(module), name)
    constants = {arg: value for arg, (kind, value) in chosen.items() if kind == "constexpr"}
    source = ASTSource(
        kernel,
        {arg: kind for arg, (kind, _) in chosen.items()},
        constexprs=constants,
        attrs={
            (i,): [["tt.divisibility", 16]]
            for i, (kind, aligned) in enumerate(chosen.values())
            if kind != "constexpr" and aligned
        },
    )
    with triton.knobs.compilation.scope():
        # Triton's cache may hold the same code with the file names of another checkout.
        triton.knobs.compilation.always_compile = True
        compiled = triton.compile(source, target=GPUTarget("cuda", ARCH, 32), options=options)
    cubin = compiled.asm["cubin"]
    (code,) = _disassemble(cubin).values()
    registers, stack, _ = _resources(cubin)[name]
    warps = compiled.metadata.num_warps
    return Compiled(name, loops(code), registers, stack, compiled.metadata.shared, warps)


def compile_cuda(source: str) -> dict[str, Compiled]:
    """Compile C++ that includes files of csrc; the kernels by their mangled names.

    The number of warps per CTA is 4 for all of them.
    """
    include = Path(torch.__path__[0]) / "include"
    with tempfile.TemporaryDirectory() as folder:
        file, cubin = Path(folder) / "kernels.cu", Path(folder) / "kernels.cubin"
        file.write_text(source)
        command = ["nvcc", "-cubin", f"-arch=sm_{ARCH}", "-O3", "-std=c++17", "-lineinfo"]
        command += ["--expt-relaxed-constexpr", "-DUSE_CUDA", "-DTORCH_STABLE_ONLY"]
        command += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
        command += ["-I", str(ROOT / "csrc"), "-I", str(include), "-o", str(cubin), str(file)]
        subprocess.run(command, check=True)
        code, used = _disassemble(cubin.read_bytes()), _resources(cubin.read_bytes())
    return {
        name: Compiled(name, loops(instructions), *used[name], warps=4)
        for name, instructions in code.items()
    }


def _disassemble(cubin: bytes) -> dict[str, list[Instruction]]:
    return parse(_run("nvdisasm", ["-hex", "-gi"], cubin))


def _resources(cubin: bytes) -> dict[str, tuple[int, int, int]]:
    """Registers, stack and static shared memory of every kernel."""
    usage = _run("cuobjdump", ["-res-usage"], cubin)
    found = re.findall(r"Function (\S+):\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", usage)
    return {name: (int(reg), int(stack), int(shared)) for name, reg, stack, shared in found}


def _run(tool: str, options: list[str], cubin: bytes) -> str:
    """Run one of the tools that Triton ships."""
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [path, *options, file.name], capture_output=True, text=True, check=True
        ).stdout
