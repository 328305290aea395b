"""How LAM's kernels are launched: a fixed table, so that the first call tunes nothing.

Every configuration that the table may choose is compiled ahead of time in the tests, for each chip,
where shared memory, registers and spills are held to the chip's limits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

MOST_DIMS = 512
MOST_CHANNELS = 256
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Config:
    """One kernel's launch."""

    targets: int  # pixels a program
    block_d: int  # features that are multiplied in one go
    slice: int  # backward: features whose gradient a program makes
    num_warps: int
    num_stages: int
    input_precision: str


def padded_dims(dims: int) -> int:
    """The number of features that packed tiles hold for D."""
    return max(16, 1 << (dims - 1).bit_length())


def padded_channels(channels: int) -> int:
    """The number of channels that packed tiles hold for C."""
    return max(16, 1 << (channels - 1).bit_length())


def forward(arch: str, dtype: torch.dtype, dims: int, channels: int) -> Config:
    """Of the forward kernel, for padded numbers of features and channels."""
    return Config(64, min(dims, 64), 0, 4, 2, _input_precision(arch))


def backward(arch: str, dtype: torch.dtype, dims: int, channels: int) -> Config:
    """Of the backward kernel, for padded numbers of features and channels."""
    return Config(64, min(dims, 64), min(dims, 64), 4, 1, _input_precision(arch))


def _input_precision(arch: str) -> str:
    """How float32 is multiplied: to float32's own precision, or nearly."""
    return "ieee" if arch.startswith("gfx") else "tf32x3"
