"""Float32 that neither torch's precision switches nor autocast shorten."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without autocast, which the device meta lacks."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return ``a @ b`` to float32 rounding, whatever torch's switches allow.

    ``torch.set_float32_matmul_precision("high")`` and its relatives let a GPU round float32
    operands to TF32 (10 bits of mantissa), and some CPUs to bfloat16 (7 bits). LAM takes the
    exponential of products of size |f|^2, about 500, so such a product would be off by 0.1 or more.
    If a switch is on, multiply in float64 instead; autograd then does the same in backward.
    """
    if a.dtype == torch.float32 and _may_round_operands(a.device.type):
        return (a.double() @ b.double()).float()
    return a @ b


def _read_switch(device_type: str) -> bool:
    """Return whether torch may multiply float32 matrices in a narrower format on this device."""
    if device_type == "cuda":
        allowed: str = torch.backends.cuda.matmul.fp32_precision
    elif device_type == "cpu":
        allowed = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    else:
        return False
    return allowed not in ("none", "ieee")


# torch.compile cannot trace the reads. It evaluates them once per graph, and compiles a new graph
# when the CUDA switch changes.
_may_round_operands: Callable[[str], bool] = torch.compiler.assume_constant_result(_read_switch)
