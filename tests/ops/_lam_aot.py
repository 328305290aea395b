"""Compiles LAM's Triton kernels ahead of time, for chips that this machine does not have.

``python -m tests.ops._lam_aot`` prints the table of benchmarks/results/lam-aot.md for the Triton
that is installed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from blpseg_ops.triton import (
    lam_backward,
    lam_config,
    lam_describe,
    lam_directions,
    lam_forward,
    lam_pack,
    lam_tile_lists,
    two_grids_backward,
    two_grids_describe,
    two_grids_forward,
    two_grids_tile_lists,
)
from blpseg_ops.triton.lam_config import Launch

KERNELS = {
    "forward": lam_forward.forward_kernel,
    "backward": lam_backward.backward_kernel,
    "pack": lam_pack.pack_kernel,
    "directions": lam_directions.directions_kernel,
    "describe": lam_describe.describe_kernel,
    "list": lam_tile_lists.list_kernel,
    "refine": lam_tile_lists.refine_kernel,
    "two_grids_forward": two_grids_forward.two_grids_forward_kernel,
    "two_grids_queries": two_grids_backward.two_grids_queries_kernel,
    "two_grids_keys": two_grids_backward.two_grids_keys_kernel,
    "two_grids_describe": two_grids_describe.two_grids_describe_kernel,
    "two_grids_list": two_grids_tile_lists.two_grids_list_kernel,
    "two_grids_refine": two_grids_tile_lists.two_grids_refine_kernel,
}
# Bytes per block on the smallest chip of each family.
SHARED_MEMORY = {"sm_80": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}

_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
_MAPS = {"features", "values", "grad_output", "output", "grad_features", "grad_values"}
_MAPS |= {"maps", "packed", "queries", "grad_queries"}
_FLOAT_ARRAYS = {"sq_norm", "delta", "log_denominator", "log_denominator_in", "box_low", "box_high"}
_FLOAT_ARRAYS |= {
    "directions",
    "key_max_bound",
    "query_max_bound",
    "key_log_bound",
    "query_log_bound",
    "axes",
}
_FLOAT_ARRAYS |= {
    "value_sums",
    "grad_sums",
    "mean_grad",
    "skipped_sum",
    "grad_unit",
    "weight_sums",
    "guard_sums",
}
_FLOAT_ARRAYS |= {
    "inv_two_sigma_sqs",
    "nearest_score",
    "sigma_sums",
    "features_sums",
    "values_sums",
    "query_axes",
    "query_box",
    "middle_axes",
    "key_axes",
    "key_low",
    "key_high",
    "own_axes",
    "other_axes",
    "own_log_bound",
    "other_log_bound",
    "sums",
}
_INTEGER_ARRAYS = {"tile_lists", "list_lengths", "candidates", "candidate_lengths"}
_FLOATS = {"scale", "inv_two_sigma_sq", "log_eps", "log_skip_threshold", "log_shares"}


class Resources(NamedTuple):
    """The resources of a compiled kernel."""

    shared_memory: int  # bytes per block
    registers: int  # per thread
    spilled: int  # NVIDIA: bytes of stack; AMD: registers


TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])


def spill_limit(dtype: torch.dtype) -> int:
    """Return the bytes of stack (AMD: registers) that a kernel may take.

    Some of the largest launches use all 255 registers, and ptxas puts numbers aside; how many
    depends on the order of independent statements, so on Triton's version.
    """
    if TRITON < (3, 8):
        return {torch.float32: 128, torch.bfloat16: 240, torch.float16: 432}[dtype]
    return 128


def preparations(family: str) -> Iterator[tuple[str, torch.dtype, Launch]]:
    """Yield the launches of the kernels that run before the main ones, in float32."""
    launches = {
        "pack": lam_config.pack(),
        "directions": lam_config.directions(family, lam_config.MAX_DIMS),
        "describe": lam_config.describe(family, window=True, backward=True, has_directions=True),
        "list": lam_config.list_tiles(2, window=True, symmetric=True),
        "refine": lam_config.refine(family, 2, has_eps=True, window=True, symmetric=True),
    }
    for name, launch in launches.items():
        yield name, torch.float32, launch


def resources(name: str, dtype: torch.dtype, launch: Launch, family: str) -> Resources:
    """Compile one kernel and read what it takes."""
    compiled = compile_kernel(name, dtype, launch, family)
    if family.startswith("gfx"):
        registers, spilled = _read_amd(compiled.asm["amdgcn"])
    else:
        registers, spilled = _read_nvidia(compiled.asm["cubin"])
    return Resources(compiled.metadata.shared, registers, spilled)


def compile_kernel(name: str, dtype: torch.dtype, launch: Launch, family: str) -> Any:
    """Compile one kernel for the chip that the family is named after."""
    kernel = KERNELS[name]
    signature = {arg: _type(arg, dtype, launch) for arg in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (arg, kind) in enumerate(signature.items())
        if kind.startswith("*") or arg.startswith("packed_")
    }
    source = ASTSource(kernel, signature, constexprs=launch.constants, attrs=aligned)
    if family.startswith("gfx"):
        target = GPUTarget("hip", family, 64)
    else:
        target = GPUTarget("cuda", int(family.removeprefix("sm_")), 32)
    return triton.compile(source, target=target, options=launch.options())


def _type(arg: str, dtype: torch.dtype, launch: Launch) -> str:
    if arg in launch.constants:
        return "constexpr"
    if arg in _MAPS:
        return _POINTERS[dtype]
    if arg in _FLOAT_ARRAYS:
        return "*fp32"
    if arg in _FLOATS:
        return "fp32"
    return "*i32" if arg in _INTEGER_ARRAYS else "i32"


def _read_nvidia(cubin: bytes) -> tuple[int, int]:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return int(found[1]), int(found[2])


def _read_amd(assembly: str) -> tuple[int, int]:
    count, spilled = (
        int(re.findall(rf"\.{key}:\s*(\d+)", assembly)[0])
        for key in ("vgpr_count", "vgpr_spill_count")
    )
    return count, spilled


def _table() -> Iterator[str]:
    """Yield the largest resources of the configurations without a window, per kernel and dtype."""
    yield f"With Triton {triton.__version__}:"
    yield ""
    yield "| chip | kernel | dtype | configurations | shared KiB | registers | spilled |"
    yield "|---|---|---|---|---|---|---|"
    for family in lam_config.FAMILIES:
        groups: dict[tuple[str, torch.dtype], list[Resources]] = {}
        whole = [one for one in lam_config.every(family) if not one[2].constants["WINDOW"]]
        for name, dtype, launch in (*whole, *preparations(family)):
            used = resources(name, dtype, launch, family)
            groups.setdefault((name, dtype), []).append(used)
        for (name, dtype), group in groups.items():
            shared, registers, spilled = map(max, zip(*group, strict=True))
            kind = str(dtype).removeprefix("torch.")
            cells = family, name, kind, len(group), -(-shared // 1024), registers, spilled
            yield "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    for line in _table():
        print(line, flush=True)
