"""The joint bilateral filter against its formula."""

from __future__ import annotations

import pytest
import torch

import blpseg_ops

from ._common import randn
from ._two_grids_inputs import bilateral_formula


@pytest.mark.parametrize("size", [(6, 8), (12, 24)], ids=["same size", "upsampling"])
@pytest.mark.parametrize("backend", blpseg_ops.backends.available("lam", "cpu"))
def test_values_and_gradients(size: tuple[int, int], backend: str) -> None:
    guide, values = randn(2, 3, *size).requires_grad_(), randn(2, 4, 6, 8, seed=1).requires_grad_()
    sigmas = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.5, 0.6)]
    found = blpseg_ops.joint_bilateral(guide, values, *sigmas, backend=backend)
    cells = guide.unflatten(3, (8, -1)).unflatten(2, (6, -1))
    expected = bilateral_formula(guide, cells.mean((3, 5)), values, *sigmas)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    leaves, upstream = [guide, values, *sigmas], randn(*found.shape, seed=2)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, upstream),
        torch.autograd.grad(expected, leaves, upstream),
        rtol=1e-9,
        atol=1e-9,
    )


def test_numbers_of_an_8_bit_guide_are_exact_enough() -> None:
    guide = (randn(1, 3, 16, 16) * 40 + 128).clamp(0, 255).float()
    values = randn(1, 2, 8, 8, seed=1).float()
    found = blpseg_ops.joint_bilateral(guide, values, 2.0, 10.0)
    exact = blpseg_ops.joint_bilateral(guide.double(), values.double(), 2.0, 10.0)
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)


def test_size_resizes_the_guide() -> None:
    guide, values = randn(1, 3, 16, 16), randn(1, 2, 8, 8, seed=1)
    resized = torch.nn.functional.interpolate(guide, (12, 20), mode="bilinear", antialias=True)
    found = blpseg_ops.joint_bilateral(guide, values, 2.0, 1.0, (12, 20))
    torch.testing.assert_close(found, blpseg_ops.joint_bilateral(resized, values, 2.0, 1.0))


def test_halves_are_computed_in_float32_under_autocast_too() -> None:
    guide, values = randn(1, 3, 16, 16).bfloat16(), randn(1, 2, 8, 8, seed=1).bfloat16()
    expected = blpseg_ops.joint_bilateral(guide.float(), values.float(), 2.0, 1.0).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = blpseg_ops.joint_bilateral(guide, values, 2.0, 1.0)
    assert torch.equal(found, expected)


def test_shapes_are_known_on_meta() -> None:
    guide, values = randn(1, 3, 16, 12).to("meta"), randn(1, 2, 4, 3).to("meta")
    assert blpseg_ops.joint_bilateral(guide, values).shape == (1, 2, 16, 12)
    module = blpseg_ops.LocalAggregation(8).to("meta")
    assert module(guide.float(), values.float()).shape == values.shape
