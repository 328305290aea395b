"""What the model predicts for peers: from bytes and operations alone, without their code.

Eager PyTorch runs one kernel per operator, which reads its inputs and writes its output. The
formulas that bench_lam_cuda and bench_losses measure are run on meta tensors, which have shapes and
no numbers, and every operator is counted. FlexAttention is one fused kernel forward and two
backward; its operations follow from its algorithm, with the rates stated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import losses_peers
from benchmarks.gpu_model_chip import (
    BF16_FLOPS,
    CLOCK,
    EFFICIENCY,
    FP32_FLOPS,
    HBM,
    HBM_EFFICIENCY,
    LAUNCH_SECONDS,
    SCHEDULERS,
    SMS,
)
from benchmarks.lam_cuda_cases import AUTOCAST, Case
from benchmarks.losses_cases import Case as LossCase

MATMUL_EFFICIENCY = 0.7  # of the datasheet's rate, by cuBLAS
# FlexAttention in bfloat16 on an H100: share of the datasheet's rate that its products reach, and
# instructions per pair beside the products (distance, score, exponential, sums, conversions).
FLEX_RATE = {False: 0.5, True: 0.4}  # forward, backward
FLEX_INSTRUCTIONS = {False: 20, True: 40}
_VIEWS = "view reshape select slice split unbind expand detach transpose permute alias squeeze t"
_VIEWS += " unsqueeze unfold as empty"  # as: as_strided


class Traffic(NamedTuple):
    """What a sequence of operators moves and computes, and how long that takes."""

    bytes: float
    flops: float
    seconds: float


class _Count(TorchDispatchMode):
    """Adds up operators as kernels of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.flops = self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.strip("_")
        if name.removeprefix("new_").removeprefix("unsafe_").split("_")[0] in _VIEWS.split():
            return result
        results = result if isinstance(result, tuple | list) else [result]
        tensors = [x for x in (*args, *results) if isinstance(x, Tensor)]
        moved = sum(_bytes(x) for x in tensors)
        flops, rate = 0.0, FP32_FLOPS
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = [x for x in args if isinstance(x, Tensor)][-2:]
            flops = 2.0 * a.numel() * b.shape[-1]
            rate = (BF16_FLOPS if a.dtype == torch.bfloat16 else FP32_FLOPS) * MATMUL_EFFICIENCY
        self.bytes += moved
        self.flops += flops
        self.seconds += max(moved / (HBM * HBM_EFFICIENCY), flops / rate, LAUNCH_SECONDS)
        return result


def _bytes(x: Tensor) -> int:
    """What a tensor occupies; expanded axes are one element."""
    sizes = (1 if step == 0 else size for size, step in zip(x.shape, x.stride(), strict=True))
    return math.prod(sizes) * x.element_size()


def count(function: Callable[[], Any]) -> Traffic:
    """Count all operators of a call."""
    with _Count() as counted:
        function()
    return Traffic(counted.bytes, counted.flops, counted.seconds)


def published(case: Case) -> Traffic:
    """LAM's published formulation in eager PyTorch, with autocast's conversions written out."""
    low = torch.bfloat16 if case.dtype in (AUTOCAST, "bfloat16") else torch.float32
    shape = case.n, case.h, case.w
    features = torch.empty(shape[0], case.dims, *shape[1:], device="meta")
    values = torch.empty(shape[0], case.channels, *shape[1:], device="meta")
    gaussian = torch.empty(case.pixels, case.pixels, device="meta")
    features.requires_grad_(case.backward)
    values.requires_grad_(case.backward)

    def run() -> None:
        f = features.flatten(2).to(low)
        weight = (f.mT @ f).float().softmax(-1) * gaussian
        weight = weight / (weight.sum(-1, keepdim=True) + case.eps)
        output = weight.to(low) @ values.flatten(2).mT.to(low)
        if case.backward:
            torch.autograd.grad(output, (features, values), torch.empty_like(output))

    return count(run)


def flex(case: Case) -> Traffic:
    """FlexAttention in bfloat16 over all pairs."""
    pairs = float(case.n * case.pixels**2)
    dims, channels = (max(16, 2 ** math.ceil(math.log2(x))) for x in (case.dims, case.channels))
    flops = seconds = 0.0
    for backward in (False, True)[: 1 + case.backward]:
        # Forward: scores and output. Backward: dQ recomputes scores and dP; dK and dV do as well.
        products = (4 * dims + 3 * channels) if backward else (dims + channels)
        done = 2 * pairs * products
        issue = pairs * FLEX_INSTRUCTIONS[backward] / 32 / (SMS * SCHEDULERS * CLOCK)
        flops += done
        seconds += done / (BF16_FLOPS * FLEX_RATE[backward]) + issue / EFFICIENCY
    size = 2 * case.n * case.pixels * (case.dims + 2 * case.channels) * (1 + 2 * case.backward)
    return Traffic(size, flops, seconds)


def loss(peer: str, case: LossCase) -> Traffic:
    """A peer of the losses, on meta tensors of the case's sizes."""
    on_meta = case._replace(device="meta")
    n, low, high, classes = case.n, case.low, case.high, case.classes
    seg, annotation = (
        torch.empty(n, k, low, low, device="meta", requires_grad=case.backward)
        for k in (classes, classes + 1)
    )
    target = torch.empty(n, high, high, device="meta", dtype=torch.uint8)
    present = torch.empty(n, classes, device="meta", dtype=torch.bool)
    run = losses_peers.PEERS[peer](on_meta)

    def call() -> None:
        results = run(seg, annotation, target, present)
        if case.backward:
            losses = [x for x in results if x.requires_grad]
            torch.autograd.grad(losses, (seg, annotation), allow_unused=True)

    return count(call)
