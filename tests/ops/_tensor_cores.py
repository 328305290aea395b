"""Matrix products in numpy that round as NVIDIA's tensor cores do, with the same bits everywhere.

The model is that of Fasi, Higham, Mikaitis, Pranesh (PeerJ CS 7:e330) and Khattak, Mikaitis
(arXiv 2512.07004), who compared it with the chips bit by bit. One step adds a block of K products
to the accumulator: products are exact, all addends are truncated to multiples of one unit, which
the largest addend sets, their sum is exact, and it is truncated to float32.

No product here calls BLAS, whose kernels, and so whose roundings, depend on the processor.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

TF32_DROPPED_BITS = 13  # of float32's 23


class TensorCores(NamedTuple):
    """One generation's steps. `extra_bits`: kept below float32's last bit when addends align."""

    tf32_block: int  # products per step
    half_block: int  # products per step of bfloat16 and float16
    extra_bits: int

    def dot(self, a: Array, b: Array, accumulator: Array, precision: str) -> Array:
        """Return accumulator + a b for [M, K] and [K, N], as Triton lowers it.

        Args:
            a: Values of a dtype; float32 arrays whatever the dtype.
            b: Likewise.
            accumulator: [M, N].
            precision: "half" where the dtype has 16 bits; otherwise tl.dot's `input_precision`.
        """
        if precision == "half":
            return self._multiply_add(a, b, accumulator, self.half_block)
        if precision == "tf32":
            return self._tf32(a, b, accumulator)
        if precision == "tf32x3":
            return self._tf32x3(a, b, accumulator)
        assert precision == "ieee", precision
        return fma_dot(a, b, accumulator)

    def _tf32(self, a: Array, b: Array, accumulator: Array) -> Array:
        # Triton passes float32 operands on as they are; the hardware ignores the low bits.
        a, b = truncate_to_tf32(a), truncate_to_tf32(b)
        return self._multiply_add(a, b, accumulator, self.tf32_block)

    def _tf32x3(self, a: Array, b: Array, accumulator: Array) -> Array:
        # Triton 3.6 to 3.8, as TTGIR shows it: both small products first, their NaN (from
        # inf - inf) set to 0, the large product on top, the accumulator last, in float32.
        with np.errstate(invalid="ignore"):
            a_high, b_high = round_to_tf32(a), round_to_tf32(b)
            a_low, b_low = a - a_high, b - b_high
        total = self._tf32(a_low, b_high, np.zeros_like(accumulator))
        total = self._tf32(a_high, b_low, total)
        total[np.isnan(total)] = 0
        total = self._tf32(a_high, b_high, total)
        return total + accumulator

    def _multiply_add(self, a: Array, b: Array, accumulator: Array, block: int) -> Array:
        if not (np.isfinite(a).all() and np.isfinite(b).all() and np.isfinite(accumulator).all()):
            return fma_dot(a, b, accumulator)
        # Zero products leave the accumulator as it is, so padding costs nothing here.
        rows, columns = np.ix_(a.any(1), b.any(0))
        a, b = a[rows[:, 0]], b[:, columns[0]]
        total = accumulator[rows, columns].astype(np.float64)
        for k in range(0, a.shape[1], block):
            a_block, b_block = a[:, k : k + block], b[k : k + block]
            used = a_block.any(0) & b_block.any(1)
            if used.any():
                total = self._step(a_block[:, used], b_block[used], total)
        result = accumulator.copy()
        result[rows, columns] = total
        return result

    def _step(
        self, a: Array, b: Array, total: NDArray[np.float64]
    ) -> NDArray[np.float64]:  # float32 values
        products = a.T[:, :, None].astype(np.float64) * b[:, None, :]
        largest = np.maximum(np.abs(products).max(0), np.abs(total))
        # largest < 2^exponent. The chips take the sum of the factors' exponents, so their unit may
        # be half of this one.
        exponent = np.frexp(largest)[1]
        kept_bits = 24 + self.extra_bits
        scale = np.ldexp(1.0, kept_bits - exponent)
        products *= scale
        total = np.trunc(products, out=products).sum(0) + np.trunc(total * scale)
        return truncate_to_float32(np.ldexp(total, exponent - kept_bits))


AMPERE = TensorCores(tf32_block=4, half_block=8, extra_bits=1)  # A100
HOPPER = TensorCores(tf32_block=8, half_block=16, extra_bits=2)
OF_FAMILY = {"sm_80": AMPERE, "sm_90": HOPPER}


def round_to_tf32(x: Array) -> Array:
    """Round to 11 significant bits, halves away from zero, as cvt.rna.tf32.f32 does."""
    half = np.uint32(1 << (TF32_DROPPED_BITS - 1))
    rounded = truncate_to_tf32((x.view(np.uint32) + half).view(np.float32))
    return np.where(np.isfinite(x), rounded, x)


def truncate_to_tf32(x: Array) -> Array:
    """Drop the bits that tensor cores ignore."""
    kept = np.uint32(0xFFFFFFFF << TF32_DROPPED_BITS & 0xFFFFFFFF)
    return np.where(np.isnan(x), x, (np.ascontiguousarray(x).view(np.uint32) & kept).view(x.dtype))


def truncate_to_float32(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round towards zero to 24 significant bits."""
    kept = np.int64(-1) << np.int64(29)
    return (x.view(np.int64) & kept).view(np.float64)


def fma_dot(a: Array, b: Array, accumulator: Array) -> Array:
    """Return accumulator + a b, summed along K in order, with one rounding per product.

    The rounding is through float64, which differs from one fma in less than one of 2^28 cases.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        total = accumulator.astype(np.float32)
        for k in np.flatnonzero(_contributing(a, b)):
            product = a[:, k, None].astype(np.float64) * b[None, k]
            total = (total + product).astype(np.float32)
    return total


def precise_dot(a: Array, b: Array, accumulator: Array) -> Array:
    """Return accumulator + a b with exact products, summed in float64, rounded once."""
    with np.errstate(invalid="ignore", over="ignore"):
        used = _contributing(a, b)
        products = a.T[used, :, None].astype(np.float64) * b[used, None, :]
        return (accumulator + products.sum(0)).astype(np.float32)


def approximate_exp2(x: Array) -> Array:
    """Return 2^x as ex2.approx.ftz.f32 may: 2 units in the last place off, exact for whole x.

    Whether it is off upwards or downwards looks random, so that errors neither cancel nor agree.
    """
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        exact = np.exp2(x.astype(np.float64))
        bits = np.ascontiguousarray(x, np.float32).view(np.uint32) * np.uint32(0x9E3779B1)
        sign = np.where(bits >> np.uint32(31), 1, -1)
        wrong = np.where(x == np.floor(x), exact, exact * (1 + sign * 2.0**-22.5))
        return np.where(exact < 2.0**-126, 0, wrong).astype(np.float32)


def _contributing(a: Array, b: Array) -> NDArray[np.bool_]:  # [K]
    """Which products may be other than 0. Finite numbers times a zero are not; others are NaN."""
    if np.isfinite(a).all() and np.isfinite(b).all():
        contributing: NDArray[np.bool_] = a.any(0) & b.any(1)
        return contributing
    return np.ones(a.shape[1], bool)
