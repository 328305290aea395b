"""The test to copy, shown in CONTRIBUTING.md: a kernel against the float64 reference."""

from __future__ import annotations

import pytest
import torch

from blpseg_ops import blp_loss, reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("grid", "size"), [((1, 1), (3, 5)), ((7, 11), (13, 41))], ids=str)
def test_blp_loss_and_its_gradient_equal_the_reference(
    dtype: torch.dtype, grid: tuple[int, int], size: tuple[int, int]
) -> None:
    # Inputs: seeded, odd sizes, all kinds of labels (0..4, unlabeled 5, ignored 255).
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, *grid, generator=rng).to(dtype).requires_grad_()
    annotation = torch.randn(2, 6, *grid, generator=rng).to(dtype)
    target = torch.randint(0, 6, (2, *size), generator=rng)
    target[:, 0] = 255

    # The truth: the reference on the same numbers in float64, differentiated by autograd.
    exact_logits = logits.detach().double().requires_grad_()
    exact = reference.blp_loss(exact_logits, annotation.double(), target)
    (exact_gradient,) = torch.autograd.grad(exact, exact_logits)

    loss = blp_loss(logits, annotation, target)
    (gradient,) = torch.autograd.grad(loss, logits)

    # Computed in float64 or float32; the gradient is rounded to the input's dtype once.
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    rounding = max(tolerance, torch.finfo(dtype).eps)
    torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=0)
    largest = exact_gradient.abs().max()
    assert (gradient.double() - exact_gradient).abs().max() <= rounding * largest
    assert gradient.dtype == dtype
