"""Peers of ``lam`` on a GPU, measured as bench_lam_cuda.py measures ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from benchmarks import lam_peers
from benchmarks.bench_lam_cuda import measure
from benchmarks.lam_cases import Run
from benchmarks.lam_cuda_cases import (
    AUTOCAST,
    CITYSCAPES,
    DENSE,
    MODULE,
    TRAINING,
    Case,
    both,
)
from benchmarks.lam_peers import COMPILED, EAGER, FLEX, FLEX_FLASH, SDPA


def _flex_masked(case: Case) -> Run:
    """FlexAttention without the blocks in which float32's Gaussian is below rounding."""
    reach2 = 2 * case.sigma**2 * math.log(2**24 * case.pixels)

    def distance2(b: Tensor, a: Tensor) -> Tensor:
        dy, dx = b // case.w - a // case.w, b % case.w - a % case.w
        return dy * dy + dx * dx

    def is_near(_n: Tensor, _head: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return distance2(b, a) <= reach2

    mask = create_block_mask(is_near, None, None, case.pixels, case.pixels, device="cuda")
    return lam_peers.flex(case, block_mask=mask)


FLEX_MASKED = "FlexAttention, block mask"
PEERS: dict[str, Callable[[Case], Run]] = {**lam_peers.PEERS, FLEX_MASKED: _flex_masked}


def _cases() -> Iterator[tuple[str, Case]]:
    # The goals' peers come first: under autocast, and FlexAttention on the module's coordinates.
    for case in both(TRAINING):
        yield EAGER, case._replace(dtype=AUTOCAST)
        yield FLEX, case._replace(dtype="bfloat16")
    for case in both(MODULE):
        for dtype in ("bfloat16", "float32"):
            yield FLEX, case._replace(dtype=dtype)
        yield FLEX_FLASH, case._replace(dtype="bfloat16")
    for case in both(TRAINING):
        yield EAGER, case
        yield EAGER, case._replace(eps=1e-7)
        yield SDPA, case._replace(dtype="bfloat16")
        yield COMPILED, case._replace(dtype=AUTOCAST)
        yield COMPILED, case
        yield FLEX_MASKED, case._replace(dtype="bfloat16")
        yield FLEX_FLASH, case._replace(dtype="bfloat16")
        for peer in (SDPA, FLEX, FLEX_MASKED):
            yield peer, case
    for peer in (SDPA, FLEX):
        yield peer, DENSE
    for size in (*both(TRAINING), CITYSCAPES):
        for dtype in ("float32", "bfloat16"):
            yield FLEX, size._replace(dtype=dtype, radius=6)


CASES = list(_cases())


@pytest.mark.parametrize(("peer", "case"), CASES, ids=[f"{peer}: {case}" for peer, case in CASES])
def test_lam_cuda(benchmark: Any, peer: str, case: Case) -> None:
    try:
        measure(benchmark, peer, PEERS[peer], case, rounds=5)
    except Exception as error:  # of many kinds: memory, compilers, what a peer can't do
        reason = (str(error).splitlines() or [""])[0]
        pytest.skip(f"{peer}: {type(error).__name__}: {reason}")
