"""The emulated tensor cores, against sums done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ._tensor_cores import (
    AMPERE,
    HOPPER,
    Array,
    TensorCores,
    approximate_exp2,
    fma_dot,
    precise_dot,
    round_to_tf32,
    truncate_to_tf32,
)

CHIPS = pytest.mark.parametrize("cores", [AMPERE, HOPPER], ids=["Ampere", "Hopper"])
ULP = 2.0**-23  # of numbers from 1 to 2


def _array(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def _dot(
    cores: TensorCores, a: Array, b: Array, accumulator: float = 0.0, precision: str = "half"
) -> float:
    """One row times one column."""
    result = cores.dot(a[None], b[:, None], np.full((1, 1), accumulator, np.float32), precision)
    return float(result[0, 0])


def _random(*shape: int, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))).astype(np.float32)


def test_tf32_keeps_11_bits() -> None:
    halves = _array(1 + 2**-11, -1 - 2**-11, 1 + 2**-12, 1 + 3 * 2**-12, math.inf)
    assert round_to_tf32(halves).tolist() == [1 + 2**-10, -1 - 2**-10, 1, 1 + 2**-10, math.inf]
    assert truncate_to_tf32(halves).tolist() == [1, -1, 1, 1, math.inf]
    assert np.isnan(round_to_tf32(_array(math.nan))).all()
    assert np.isnan(truncate_to_tf32(_array(math.nan))).all()


@CHIPS
def test_products_are_exact(cores: TensorCores) -> None:
    x = 1 + 127 * 2.0**-7  # all 8 bits of bfloat16
    assert _dot(cores, _array(x), _array(x)) == x * x
    x = 1 + 1023 * 2.0**-10  # all 11 bits of tf32 and float16
    assert _dot(cores, _array(x), _array(x), precision="tf32") == x * x


@CHIPS
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_addends_are_truncated_towards_zero(cores: TensorCores, sign: float) -> None:
    ones = _array(1, 1, 1, 1)
    unit = ULP / 2**cores.extra_bits
    # Just below a unit each: nothing is left of them, although they add up to 3 units.
    below = _array(1, *3 * [unit * (1 - 2**-8)]) * sign
    assert _dot(cores, below, ones) == sign
    # A unit each: the bits beyond float32's last count in the sum, and are truncated with it.
    kept = _array(1, *3 * [unit]) * sign
    assert _dot(cores, kept, ones) == sign * (1 + (ULP if 3 * unit >= ULP else 0))
    # With the other sign they pull the sum down by one place.
    kept[1:] *= -1
    assert abs(_dot(cores, kept, ones)) == 1 - ULP / 2 * math.ceil(3 * unit / (ULP / 2))


@CHIPS
def test_the_accumulator_is_an_addend(cores: TensorCores) -> None:
    ones, unit = _array(1, 1), ULP / 2**cores.extra_bits
    assert _dot(cores, _array(unit, unit) * 0.99, ones, accumulator=1.0) == 1
    # ... and is itself truncated beside a larger product.
    assert _dot(cores, _array(2**30), _array(1), accumulator=3.0) == 2**30
    assert _dot(cores, _array(2**30, -(2**30)), ones, accumulator=1 / 4096) == 0


def test_steps_follow_each_other() -> None:
    # 2^24 and -2^24 cancel before 1 comes where that is in the next step, and drown it in one step.
    for cores, half, tf32 in ((AMPERE, 8, 4), (HOPPER, 16, 8)):
        for precision, block in (("half", half), ("tf32", tf32)):
            for place, expected in ((block - 1, 0.0), (block, 1.0)):
                a = np.zeros(2 * block, np.float32)
                a[0], a[1], a[place] = 2**30, -(2**30), 1
                assert _dot(cores, a, np.ones_like(a), precision=precision) == expected


@CHIPS
def test_tf32_operands_are_not_rounded(cores: TensorCores) -> None:
    x = _array(1 + 2**-10 - 2**-23)
    assert _dot(cores, x, _array(1), precision="tf32") == 1


@CHIPS
def test_tf32x3_has_22_bits(cores: TensorCores) -> None:
    a, b = _random(64, 48, seed=1), _random(48, 32, seed=2)
    zero = np.zeros((64, 32), np.float32)
    exact, size = a.astype(np.float64) @ b, np.abs(a).astype(np.float64) @ np.abs(b)
    errors = {
        precision: (np.abs(cores.dot(a, b, zero, precision) - exact) / size).max()
        for precision in ("tf32", "tf32x3", "ieee")
    }
    assert 2**-13 < errors["tf32"] < 2**-9
    assert 2**-26 < errors["tf32x3"] < 2**-20
    assert errors["ieee"] < 2**-20


@CHIPS
def test_tf32x3_drops_nan_of_the_small_parts_only(cores: TensorCores) -> None:
    assert _dot(cores, _array(math.inf, 1), _array(2, 1), precision="tf32x3") == math.inf
    assert math.isnan(_dot(cores, _array(math.inf, 1), _array(0, 1), precision="tf32x3"))
    assert math.isnan(_dot(cores, _array(math.nan, 1), _array(1, 1), precision="tf32x3"))


@CHIPS
@pytest.mark.parametrize("precision", ["half", "tf32", "ieee"])
def test_exchanging_operands_changes_no_bit(cores: TensorCores, precision: str) -> None:
    a, b = _random(24, 40, seed=3), _random(40, 17, seed=4)
    if precision == "half":
        a, b = a.astype(np.float16).astype(np.float32), b.astype(np.float16).astype(np.float32)
    start = _random(24, 17, seed=5)
    product = cores.dot(a, b, start, precision)
    exchanged = cores.dot(b.T, a.T, start.T, precision).T
    assert np.array_equal(product, exchanged)
    assert np.array_equal(precise_dot(a, b, start), precise_dot(b.T, a.T, start.T).T)


@CHIPS
def test_padding_and_position_change_no_bit(cores: TensorCores) -> None:
    a, b = _random(6, 20, seed=6), _random(20, 5, seed=7)
    padded_a, padded_b = np.zeros((16, 64), np.float32), np.zeros((64, 16), np.float32)
    padded_a[3:9, :20], padded_b[:20, 7:12] = a, b
    zero, padded_zero = np.zeros((6, 5), np.float32), np.zeros((16, 16), np.float32)
    for precision in ("tf32", "tf32x3", "ieee"):
        padded = cores.dot(padded_a, padded_b, padded_zero, precision)
        assert np.array_equal(padded[3:9, 7:12], cores.dot(a, b, zero, precision))
    assert np.array_equal(
        precise_dot(padded_a, padded_b, padded_zero)[3:9, 7:12], precise_dot(a, b, zero)
    )


def test_plain_products_show_what_is_not_finite() -> None:
    zero = np.zeros((1, 1), np.float32)
    for product in (precise_dot, fma_dot):
        for x, y in ((math.inf, 0.0), (math.nan, 0.0), (math.inf, -math.inf)):
            result = product(_array(x)[None], _array(y)[:, None], zero)
            assert not np.isfinite(result).any()


def test_plain_products_are_rounded_once() -> None:
    a, b = _random(9, 33, seed=8), _random(33, 11, seed=9)
    zero = np.zeros((9, 11), np.float32)
    expected = [[math.fsum(row.astype(float) * column) for column in b.T] for row in a]
    assert np.array_equal(precise_dot(a, b, zero), np.array(expected).astype(np.float32))


def test_exponentials_are_off_by_2_units() -> None:
    x = np.linspace(-20, 20, 100_001).astype(np.float32)
    error = approximate_exp2(x) / np.exp2(x.astype(np.float64)) - 1
    assert 2**-23 < np.abs(error).max() < 2**-22
    assert abs(error.mean()) < 2**-27
    whole = _array(0, -1, -40, 3, -math.inf)
    assert approximate_exp2(whole).tolist() == [1, 0.5, 2**-40, 8, 0]
    assert approximate_exp2(_array(-126.5)).tolist() == [0]  # ftz
    assert np.isnan(approximate_exp2(_array(math.nan))).all()
