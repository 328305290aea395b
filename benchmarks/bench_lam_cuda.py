"""``lam`` on a GPU beside its peers: time, peak memory and error, with a batch as in training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import blpseg_ops
from benchmarks import lam_cases, lam_peers
from benchmarks.lam_cases import RANDOM, Run
from benchmarks.lam_peers import COMPILED, EAGER, FLEX, OURS, SDPA

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)


class Case(NamedTuple):
    """One call to measure."""

    source: str = "astronaut"  # a photo of scikit-image or a key of RANDOM
    n: int = 10
    dims: int = 256
    channels: int = 21
    h: int = 96
    w: int = 96
    sigma: float = 6.0
    eps: float = 0.0
    dtype: str = "float32"  # of features and values; "autocast": float32, under bfloat16 autocast
    backward: bool = True
    radius: int | None = None

    @property
    def pixels(self) -> int:
        """L, the pixels of the feature map."""
        return self.h * self.w

    def __str__(self) -> str:
        """As in the names of benchmarks."""
        size = f"N {self.n}, D {self.dims}, C {self.channels}, {self.h} x {self.w}"
        what = "forward + backward" if self.backward else "forward"
        numbers = f"sigma {self.sigma:g}, eps {self.eps:g}, {self.dtype}"
        if self.radius is not None:
            numbers += f", radius {self.radius}"
        return f"{self.source}, {size}, {numbers}, {what}"


def _flex_masked(case: Case) -> Run:
    """FlexAttention that leaves out blocks beyond the reach of float32's Gaussian."""
    reach2 = 2 * case.sigma**2 * math.log(2**24 * case.pixels)

    def distance2(b: Tensor, a: Tensor) -> Tensor:
        dy, dx = b // case.w - a // case.w, b % case.w - a % case.w
        return dy * dy + dx * dx

    def near(_n: Tensor, _head: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return distance2(b, a) <= reach2

    def gaussian(score: Tensor, _n: Tensor, _head: Tensor, b: Tensor, a: Tensor) -> Tensor:
        return score - distance2(b, a) / (2 * case.sigma**2)

    mask = create_block_mask(near, None, None, case.pixels, case.pixels, device="cuda")
    attention = torch.compile(
        partial(flex_attention, score_mod=gaussian, block_mask=mask, scale=1.0), dynamic=False
    )

    def run(features: Tensor, values: Tensor) -> Tensor:
        query, source = (x.flatten(2).mT[:, None].contiguous() for x in (features, values))
        return attention(query, query, source)[:, 0].mT.unflatten(2, (case.h, case.w)).contiguous()

    return run


FLEX_MASKED = "FlexAttention, block mask"
PEERS = {**lam_peers.PEERS, FLEX_MASKED: _flex_masked}

TRAINING = Case()
SIXTY = TRAINING._replace(channels=60)
CITYSCAPES = TRAINING._replace(n=1, h=256, w=512)
# Nothing can be left out: equal scores almost, and hardly a Gaussian.
DENSE = Case("random, |f| 0.8", sigma=96.0, dtype="bfloat16", backward=False)


def _cases() -> Iterator[tuple[str, Case]]:
    for case in (TRAINING, SIXTY):
        for both in (case._replace(backward=False), case):
            yield OURS, both
            yield OURS, both._replace(dtype="autocast")
            yield OURS, both._replace(dims=50)  # what LocalAggregation asks for
            yield OURS, both._replace(dtype="bfloat16")
    for both in (TRAINING._replace(backward=False), TRAINING):
        for peer in (EAGER, COMPILED):
            yield peer, both
            yield peer, both._replace(dtype="autocast")
        for dtype in ("float32", "bfloat16"):
            for peer in (SDPA, FLEX, FLEX_MASKED):
                yield peer, both._replace(dtype=dtype)
        yield OURS, both._replace(eps=1e-7)
        yield EAGER, both._replace(eps=1e-7)
    yield OURS, DENSE
    yield SDPA, DENSE
    yield FLEX, DENSE
    for both in (CITYSCAPES._replace(backward=False), CITYSCAPES):
        yield OURS, both
        yield OURS, both._replace(dims=50)
        yield OURS, both._replace(eps=1e-7)
    for both in (TRAINING, TRAINING._replace(backward=False), CITYSCAPES):
        for dtype in ("float32", "bfloat16"):
            for peer in (OURS, FLEX):
                yield peer, both._replace(dtype=dtype, radius=6)


CASES = list(_cases())


@lru_cache(maxsize=1)
def _photo(source: str, dims: int, h: int, w: int) -> Tensor:  # [1, D, h, w]
    """The embedding of a photo; of 50 dimensions: its coordinates."""
    pytest.importorskip("skimage")
    patches = lam_cases.normalised_photo(source, h, w)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = blpseg_ops.LocalAggregation()
        return module.coordinates(patches) if dims == 50 else module.embed(patches)


def _inputs(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Features, values and the gradient of the output; images are shifted copies of a photo."""
    generator = torch.Generator().manual_seed(0)
    if case.source in RANDOM:
        shape = case.n, case.dims, case.h, case.w
        features = RANDOM[case.source] * torch.randn(shape, generator=generator)
    else:
        one = _photo(case.source, case.dims, case.h, case.w)
        features = torch.cat([one.roll(5 * i, 3) for i in range(case.n)])
    values = torch.randn(case.n, case.channels, case.h, case.w, generator=generator)
    gradient = torch.randn(values.shape, generator=generator)
    dtype = torch.bfloat16 if case.dtype == "bfloat16" else torch.float32
    features, values, gradient = (x.to("cuda", dtype) for x in (features, values, gradient))
    return (
        features.requires_grad_(case.backward),
        values.requires_grad_(case.backward),
        gradient,
    )


def _call(run: Run, case: Case, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    features, values, gradient = inputs
    with torch.autocast("cuda", torch.bfloat16, enabled=case.dtype == "autocast"):
        output = run(features, values)
    if not case.backward:
        return (output,)
    grads = torch.autograd.grad(output, (features, values), gradient.to(output.dtype))
    return output.detach(), *grads


@pytest.mark.parametrize(("peer", "case"), CASES, ids=[f"{peer}: {case}" for peer, case in CASES])
def test_lam_cuda(benchmark: Any, peer: str, case: Case) -> None:
    inputs = _inputs(case)
    with torch.device("cuda"):
        run = partial(_call, PEERS[peer](case), case, inputs)
    try:
        run()  # compiles
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = run()
    except Exception as error:  # of many kinds: memory, compilers, what a peer can't do
        if peer == OURS:
            raise
        pytest.skip(f"{peer}: {str(error).splitlines()[0]}")
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before - sum(x.nbytes for x in results)
    benchmark.extra_info.update(case._asdict(), peer=peer, peak_bytes=peak)
    if case.pixels <= TRAINING.pixels:
        benchmark.extra_info["errors"] = _errors(case, inputs, results)

    def timed() -> None:
        run()
        torch.cuda.synchronize()

    benchmark.group = f"lam on the GPU: {case}"
    benchmark.pedantic(timed, rounds=10 if peer == OURS else 5, warmup_rounds=2)


def test_matrix_rate(benchmark: Any) -> None:
    """The rate that matrix units reach on a plain product, to hold others against."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))

    def timed() -> None:
        torch.mm(a, b)
        torch.cuda.synchronize()

    benchmark.group = "bfloat16 matrix product"
    benchmark.extra_info["operations"] = 2 * size**3
    benchmark.pedantic(timed, rounds=20, warmup_rounds=5)


def _errors(
    case: Case, inputs: tuple[Tensor, Tensor, Tensor], results: tuple[Tensor, ...]
) -> dict[str, float]:
    """Largest difference from float64 on the first image, relative to the largest number."""
    one = case._replace(n=1, dtype="float64")
    first = tuple(x.detach()[:1].double().requires_grad_(x.requires_grad) for x in inputs)
    reference = partial(PEERS[OURS](case), backend="reference")
    truth = _call(reference, one, first)
    names = ("output", "grad_features", "grad_values")
    return {
        name: float((got[:1].double() - wanted).abs().max() / wanted.abs().max())
        for name, got, wanted in zip(names, results, truth, strict=False)
    }
