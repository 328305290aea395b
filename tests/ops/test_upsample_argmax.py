"""upsample_argmax: the C++ kernel against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blpseg_ops import backends, reference, upsample_argmax
from blpseg_ops.reference.resize import upsample

SIZES = [(1, 1), (1, 40), (11, 13), (22, 26), (44, 52), (37, 100), (3, 5), (253, 7)]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def _assert_largest(labels: Tensor, logits: Tensor, size: tuple[int, int]) -> None:
    """Assert that each label's logit is the largest in float64, up to float32 rounding."""
    wide = upsample(logits.double(), size)
    chosen = wide.gather(1, labels.long()[:, None])[:, 0]
    tolerance = (1e-12 if logits.dtype == torch.float64 else 1e-6) * wide.abs().amax(1)
    assert (wide.amax(1) - chosen <= tolerance).all()


def test_the_check_itself_can_fail() -> None:
    logits = torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1)
    with pytest.raises(AssertionError):
        _assert_largest(torch.zeros(1, 2, 2), logits, (2, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 21, 300])
def test_takes_the_largest(
    rng: torch.Generator, dtype: torch.dtype, size: tuple[int, int], classes: int
) -> None:
    logits = torch.randn(2, classes, 11, 13, generator=rng).to(dtype)
    labels = upsample_argmax(logits, size)
    assert labels.shape == (2, *size)
    assert labels.dtype == (torch.uint8 if classes <= 255 else torch.int32)
    _assert_largest(labels, logits, size)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_reference_in_float64(rng: torch.Generator, size: tuple[int, int]) -> None:
    logits = torch.randn(2, 21, 11, 13, generator=rng, dtype=torch.float64)
    assert torch.equal(upsample_argmax(logits, size), reference.upsample_argmax(logits, size))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_layout(rng: torch.Generator, dtype: torch.dtype) -> None:
    logits = torch.randn(2, 6, 9, 7, generator=rng).to(dtype)
    expected = upsample_argmax(logits, (20, 31))
    wider = torch.randn(2, 12, 9, 16, generator=rng).to(dtype)
    wider[:, ::2, :, 1:8] = logits
    layouts = {
        "channels_last": logits.contiguous(memory_format=torch.channels_last),
        "transposed": logits.mT.contiguous().mT,
        "strided, with an offset": wider[:, ::2, :, 1:8],
    }
    for name, same in layouts.items():
        assert torch.equal(same, logits), name
        assert not same.is_contiguous(), name
        assert torch.equal(upsample_argmax(same, (20, 31)), expected), name
    expanded = logits[:1].expand(3, -1, -1, -1)
    assert torch.equal(upsample_argmax(expanded, (20, 31)), expected[:1].expand(3, -1, -1))


def test_ties_go_to_the_lowest_class() -> None:
    logits = torch.zeros(1, 5, 3, 3)
    logits[:, 2:4] = 1.0
    assert (upsample_argmax(logits, (7, 8)) == 2).all()


def test_infinities_and_nan_as_in_argmax() -> None:
    logits = torch.full((1, 4, 1, 4), -float("inf"))
    logits[0, 1, 0, 1] = float("nan")
    logits[0, 3, 0, 1] = float("nan")
    logits[0, 2, 0, 2] = float("inf")
    labels = upsample_argmax(logits, (1, 4))
    assert labels.tolist() == [[[0, 1, 2, 0]]]
    assert torch.equal(labels.long(), logits.argmax(1))


def test_empty_batch() -> None:
    labels = upsample_argmax(torch.zeros(0, 3, 4, 4), (8, 8))
    assert labels.shape == (0, 8, 8)
    assert labels.dtype == torch.uint8


def test_empty_batch_of_a_size_beyond_numbers() -> None:
    # 256 classes times this width is 0 modulo 2^64; the kernel once divided by that product.
    labels = upsample_argmax(torch.zeros(0, 256, 4, 4), (1, 2**56))
    assert labels.shape == (0, 1, 2**56)


def test_the_number_of_threads_does_not_matter(restore_threads: None, rng: torch.Generator) -> None:
    logits = torch.randn(3, 21, 40, 40, generator=rng)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(upsample_argmax(logits, (160, 161)))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.skipif(
    "cpp" not in backends.available("upsample_argmax", "cpu"), reason="no native code was built"
)
def test_the_kernel_is_what_runs() -> None:
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has_kernel("blpseg::upsample_argmax", "CPU")
    logits = torch.randn(1, 4, 3, 3)
    by_name = upsample_argmax(logits, (9, 9), backend="cpp")
    assert torch.equal(by_name, upsample_argmax(logits, (9, 9)))


@pytest.mark.skipif(
    "cpp" not in backends.available("upsample_argmax", "cpu"), reason="no native code was built"
)
def test_the_kernel_guards_its_memory() -> None:
    op = torch.ops.blpseg.upsample_argmax
    with pytest.raises(RuntimeError, match=r"expected logits \[N, K, h, w\]"):
        op(torch.zeros(3, 4, 4), (8, 8))
    with pytest.raises(RuntimeError, match=r"expected size \(H, W\)"):
        op(torch.zeros(1, 3, 4, 4), (0, 8))
    with pytest.raises(RuntimeError, match="expected logits of float16"):
        op(torch.zeros(1, 3, 4, 4, dtype=torch.int32), (8, 8))
