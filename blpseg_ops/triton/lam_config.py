"""How LAM's kernels are launched: a fixed table, so that the first call tunes nothing.

What the table may choose is compiled ahead of time in the tests, for each family of chips, where
shared memory, registers and spills are held to the chips' limits (with eps > 0; all of it is in
benchmarks/results/lam-aot.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import torch

MAX_DIMS = 512
MAX_CHANNELS = 256
MAX_CHANNELS_OF_TWO_GRIDS = 1024
MIN_TILES_FOR_DIRECTIONS = 64
PACKED = 32  # packed widths are multiples of this
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Chips that take the same table: by their matrix units, and sm_80 by the 99 KiB of shared memory of
# its smallest member.
FAMILIES = ("sm_80", "sm_90", "sm_100", "gfx942")


class Launch(NamedTuple):
    """What a kernel is compiled with."""

    constants: dict[str, Any]  # bool, int or str, by the kernel's own names
    num_warps: int = 4
    num_stages: int = 3
    max_registers: int | None = None  # per thread; None: as many as the compiler likes

    def keywords(self) -> dict[str, Any]:
        """Return all of it as keywords of a launch."""
        return {**self.constants, **self.options()}

    def options(self) -> dict[str, int]:
        """Return the compiler's options."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return options


def family_of(arch: str) -> str:
    """The family of a chip, "sm_" and its compute capability or AMD's name for it."""
    if arch.startswith("gfx"):
        return "gfx942"
    return {"sm_90": "sm_90", "sm_100": "sm_100", "sm_103": "sm_100"}.get(arch, "sm_80")


@lru_cache
def has_matrix_units(device: torch.device) -> bool:
    """Return whether the chip multiplies matrices of every dtype in the table."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


@lru_cache
def family_of_device(device: torch.device) -> str:
    """Return the chip's row of the table."""
    if device.type != "cuda":  # Triton's interpreter, for which any does
        return "sm_90"
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return family_of(properties.gcnArchName)
    return family_of(f"sm_{properties.major}{properties.minor}")


def packed_dims(dims: int) -> int:
    """The number of features that packed tiles hold for D: 64, or a multiple of 128."""
    return 64 if dims <= 64 else -(-dims // 128) * 128


def packed_channels(channels: int) -> int:
    """The number of channels that packed tiles hold for C: 32, or a multiple of 64."""
    return 32 if channels <= 32 else -(-channels // 64) * 64


def forward(
    family: str, dtype: torch.dtype, dims: int, channels: int, has_eps: bool, window: bool
) -> Launch:
    """Return the forward kernel's launch for packed numbers of features and channels."""
    max_registers = None
    if dtype == torch.float32:
        queries, warps, stages = 64, 4, 2
        # The same blocks as in backward: scores have the same bits.
        whole = dims == 64 and family == "sm_90"
        block = 64 if whole else 32
        keys = 32 if channels == 32 or family == "sm_90" else 16
        if family == "sm_90" and channels == 32:
            stages = 3 if whole else 4  # two copies in flight; three programs per multiprocessor
        if family == "sm_90" and not window and (whole or channels == 32):
            max_registers = 168  # three programs of 128 threads; nothing is spilled
    else:
        queries, warps, stages = 128, 8, 3 if family == "sm_90" else 2
        whole = _is_whole(family, dims)
        block = dims if whole else 128
        keys = 64
    constants = {
        "HAS_EPS": has_eps,
        "WINDOW": window,
        "QUERIES": queries,
        "KEYS": keys,
        "FITS_IN_ONE_BLOCK": whole,
        "BLOCK_D": block,
        "SLICE_C": min(channels, 64),
        "INPUT_PRECISION": _input_precision(family),
    }
    return Launch(constants, warps, stages, max_registers)


def backward(
    family: str, dtype: torch.dtype, dims: int, channels: int, has_eps: bool, window: bool
) -> Launch:
    """Return the backward kernel's launch for packed numbers of features and channels."""
    queries, warps, keys, stages = 64, 4, 32, 2
    if dtype == torch.float32:
        # Triton pipelines innermost loops only: features in one block leave one loop.
        whole = dims == 64 and family == "sm_90"
        block, features = 64 if whole else 32, 64
        if channels > 32 or family == "sm_100":
            keys = 16
    else:
        whole = _is_whole(family, dims)
        block, features = dims if whole else 128, min(dims, 128)
        if family != "gfx942":
            queries, warps = 128, 8
        if not whole:
            keys = 16
        if family == "sm_90" and dims == 256:
            keys, features, stages = 16, 256, 3  # scores are made once, and nothing is spilled
    constants = {
        "HAS_EPS": has_eps,
        "WINDOW": window,
        "QUERIES": queries,
        "KEYS": keys,
        "D_FITS_IN_ONE_BLOCK": whole,
        "C_FITS_IN_ONE_BLOCK": channels == 32,
        "BLOCK_D": block,
        "BLOCK_C": 32,
        "SLICE_D": features,
        "HAS_GRAD_UNIT": dtype == torch.float16,
        "SLICE_C": min(channels, 64),
        "INPUT_PRECISION": _input_precision(family),
    }
    return Launch(constants, warps, stages)


def pack() -> Launch:
    """Return the launch of pack_kernel."""
    return Launch({"BLOCK": PACKED})


def uses_directions(dims: int, list_capacity: int) -> bool:
    """Whether tiles are listed by principal directions instead of the first features.

    Finding them takes one program per image. This pays where scores are expensive, and lists may
    hold more tiles than most pixels' weights reach.
    """
    return dims > 64 and list_capacity >= MIN_TILES_FOR_DIRECTIONS


def directions(family: str, dims: int) -> Launch:
    """Return the launch of directions_kernel for a packed number of features."""
    constants = {
        "DIMS": 1 << (dims - 1).bit_length(),
        "SAMPLES": 128,
        "ROWS": 16,
        "ITERATIONS": 2,
        "INPUT_PRECISION": _input_precision_of_bounds(family),
    }
    return Launch(constants, num_warps=8, num_stages=1)


def describe(family: str, window: bool, backward: bool, has_directions: bool) -> Launch:
    """Return the launch of describe_kernel."""
    constants = {
        "BACKWARD": backward,
        "WINDOW": window,
        "HAS_DIRECTIONS": has_directions,
        "BLOCK": PACKED,
        "INPUT_PRECISION": _input_precision(family),
    }
    return Launch(constants)


def list_tiles(tiles_per_program: int, window: bool, symmetric: bool) -> Launch:
    """Return the launch of list_kernel."""
    constants = {
        "TILES_PER_PROGRAM": tiles_per_program,
        "WINDOW": window,
        "SYMMETRIC": symmetric,
        "BLOCK": 128,
    }
    return Launch(constants)


def refine(
    family: str, tiles_per_program: int, has_eps: bool, window: bool, symmetric: bool
) -> Launch:
    """Return the launch of refine_kernel."""
    max_registers = None
    if family == "sm_90" and not window:
        max_registers = 128 if has_eps else 96  # one more program fits; no loop spills
    constants = {
        "QUERIES": 64 * tiles_per_program,
        "HAS_EPS": has_eps,
        "WINDOW": window,
        "SYMMETRIC": symmetric,
        "INPUT_PRECISION": _input_precision_of_bounds(family),
        "BLOCK": 128,
    }
    return Launch(constants, num_warps=4 * tiles_per_program, max_registers=max_registers)


def two_grids_forward(
    family: str, dtype: torch.dtype, dims: int, channels: int, has_eps: bool, window: bool
) -> Launch:
    """Return the launch of two_grids_forward_kernel: the blocks of the one-grid kernel."""
    return forward(family, dtype, dims, channels, has_eps, window)._replace(max_registers=None)


def two_grids_queries(
    family: str, dtype: torch.dtype, dims: int, channels: int, has_eps: bool, window: bool
) -> Launch:
    """Return the launch of two_grids_queries_kernel: the blocks of the one-grid backward."""
    launch = backward(family, dtype, dims, channels, has_eps, window)
    constants = {name: one for name, one in launch.constants.items() if name != "SLICE_C"}
    constants["SLICE_D"] = min(constants["SLICE_D"], 128)  # 256 would spill
    return launch._replace(constants=constants)


def two_grids_keys(
    family: str, dtype: torch.dtype, dims: int, channels: int, has_eps: bool, window: bool
) -> list[Launch]:
    """Return the launches of two_grids_keys_kernel: here keys are owned, and queries visited.

    One launch computes the gradients of features and values where a program can hold both: scores
    are made once. Else there are two, of features and of values.
    """
    launch = backward(family, dtype, dims, channels, has_eps, window)
    constants = {
        **launch.constants,
        "KEYS": launch.constants["QUERIES"],
        "QUERIES": launch.constants["KEYS"],
        "SLICE_D": min(launch.constants["SLICE_D"], 128),
    }
    if dtype != torch.float32 and not constants["D_FITS_IN_ONE_BLOCK"]:
        constants["KEYS"] = 64  # 128 would spill
    both = constants["SLICE_D"] == dims and constants["SLICE_C"] == channels
    computed = [(True, True)] if both else [(True, False), (False, True)]
    return [
        launch._replace(constants={**constants, "FEATURES": features, "VALUES": values})
        for features, values in computed
    ]


def two_grids_list(tiles_per_program: int, window: bool, of_keys: bool) -> Launch:
    """Return the launch of two_grids_list_kernel."""
    constants = {
        "TILES_PER_PROGRAM": tiles_per_program,
        "WINDOW": window,
        "OF_KEYS": of_keys,
        "BLOCK": 128,
    }
    return Launch(constants)


def two_grids_refine(family: str, tiles_per_program: int, has_eps: bool, window: bool) -> Launch:
    """Return the launch of two_grids_refine_kernel."""
    constants = {
        "ROWS": 64 * tiles_per_program,
        "HAS_EPS": has_eps,
        "WINDOW": window,
        "INPUT_PRECISION": _input_precision_of_bounds(family),
        "BLOCK": 128,
    }
    return Launch(constants, num_warps=4 * tiles_per_program)


KERNELS: dict[str, Callable[..., Launch]] = {"forward": forward, "backward": backward}


def every(family: str) -> Iterator[tuple[str, torch.dtype, Launch]]:
    """All that the table may choose for a family, each once."""
    seen = []
    dims = sorted({packed_dims(d) for d in range(1, MAX_DIMS + 1)})
    channels = sorted({packed_channels(c) for c in range(1, MAX_CHANNELS + 1)})
    options = product(KERNELS, DTYPES, dims, channels, (False, True), (False, True))
    for name, dtype, d, c, has_eps, window in options:
        choice = name, dtype, KERNELS[name](family, dtype, d, c, has_eps, window)
        if choice not in seen:
            seen.append(choice)
            yield choice


def _is_whole(family: str, dims: int) -> bool:
    """Whether all of a pixel's features, of 16 bits, stay in shared memory.

    128 would, but gains little over the loop that 384 and 512 need anyway.
    """
    return dims == 64 or (dims == 256 and family in ("sm_90", "sm_100"))


def _input_precision_of_bounds(family: str) -> str:
    """How bounds are multiplied: their operands are rounded to tf32 before, or need not be exact.

    Triton 3.6 fails on such short products in tf32 for sm_100.
    """
    return "tf32" if family in ("sm_80", "sm_90") else "ieee"


def _input_precision(family: str) -> str:
    """How float32 is multiplied: to float32's own precision, or nearly."""
    return "ieee" if family == "gfx942" else "tf32x3"
