"""The inputs of the tests of LAM test what they are meant to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blpseg_ops import LocalAggregation

from ._common import randn
from ._lam_inputs import MODULE_TOLERANCE, module_step, smooth_images


def _errors(images: Tensor) -> list[float]:
    """Return the float32 error of the output and of each gradient, relative to the largest."""
    module = LocalAggregation(sigma=3.0).double()
    logits = randn(2, 5, 13, 18)
    expected = module_step(module, images, logits)
    results = module_step(module.float(), images.float(), logits.float())
    errors = []
    for result, exact in zip(results, expected, strict=True):
        errors.append(((result - exact).abs().max() / exact.abs().max()).item())
    return errors


def test_smooth_images_have_gradients_beyond_rounding() -> None:
    torch.manual_seed(0)
    assert max(_errors(smooth_images(2, 50, 70))) < MODULE_TOLERANCE / 4
    # The gradients of white noise are rounding noise.
    torch.manual_seed(0)
    assert max(_errors(randn(2, 3, 50, 70))) > 1


def test_smooth_images_are_smooth_and_of_unit_size() -> None:
    images = smooth_images(2, 50, 70)
    assert images.shape == (2, 3, 50, 70)
    assert images.std().item() == pytest.approx(1, abs=0.3)
    assert images.diff(dim=3).std() < 0.2 * images.std()
