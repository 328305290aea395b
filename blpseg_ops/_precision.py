"""Float32 matrix products that torch's precision switches do not shorten."""

from __future__ import annotations

import torch
from torch import Tensor


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


# torch.compile cannot trace these reads. It evaluates them once per graph, and compiles again when
# the CUDA switch changes.
@torch.compiler.assume_constant_result
def _may_round_operands(device_type: str) -> bool:
    """Whether torch may multiply float32 matrices in a narrower format on this device."""
    if device_type == "cuda":
        allowed = torch.backends.cuda.matmul.fp32_precision
    elif device_type == "cpu":
        allowed = torch.backends.mkldnn.matmul.fp32_precision
    else:
        return False
    return allowed not in ("none", "ieee")
