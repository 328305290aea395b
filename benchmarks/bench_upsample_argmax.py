"""``upsample_argmax`` beside what one would write in PyTorch, at training size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops

SIZE = (384, 384)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def plain(logits: Tensor) -> Tensor:
    """Resize everything, then take the arg max."""
    return F.interpolate(logits, SIZE, mode="bilinear").argmax(1)


PEERS: dict[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "blpseg_ops": lambda: lambda logits: blpseg_ops.upsample_argmax(logits, SIZE),
    "torch eager": lambda: plain,
    "torch compiled": lambda: torch.compile(plain),
}


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("classes", [21, 150])
@pytest.mark.benchmark(warmup=True, warmup_iterations=2, min_rounds=10)
def test_upsample_argmax(benchmark: Any, classes: int, peer: str) -> None:
    benchmark.group = f"upsample_argmax: N 10, K {classes}, 96 x 96 to 384 x 384, float32"
    if DEVICE == "cuda":
        benchmark.group += ", GPU"
    logits = torch.randn(10, classes, 96, 96, generator=torch.Generator().manual_seed(0))
    logits = logits.to(DEVICE)
    run = PEERS[peer]()

    def timed() -> Tensor:
        labels = run(logits)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return labels

    with torch.inference_mode():
        labels = benchmark(timed)
    # Float32 rounding decides near ties; anything more is a bug in one of the two.
    assert (labels.long() == plain(logits)).float().mean() > 0.9999
