"""Refine labels by a dense CRF, with the library pydensecrf2; not a part of the method.

Source: Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from blpseg.crf_constants import CRF, DEEPLAB
from blpseg.errors import UserError

_MIN_PROBABILITY = 1e-5  # a probability of 0 has infinite energy


def require_crf() -> None:
    """Check that the library is installed.

    Raises:
        UserError: It is not; the message says how to install it.
    """
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"crf: expected the package pydensecrf2, which cannot be imported ({error}); "
            "install it with: pip install 'blpseg[crf]' (Python 3.10 to 3.12)"
        ) from error


def dense_crf(
    image: Tensor,  # [3, H, W] uint8
    probabilities: Tensor,  # [K, H, W]
    constants: CRF = DEEPLAB,
) -> Tensor:  # [H, W]
    """Label an image; near pixels and pixels of similar color tend to get the same label.

    Args:
        image: [3, H, W] uint8, RGB.
        probabilities: [K, H, W] floating point, 0 to 1.
        constants: Iterations, distances and weights.

    Returns:
        [H, W] uint8, on the CPU.

    Raises:
        UserError: The library is not installed.
    """
    require_crf()
    from pydensecrf.densecrf import DenseCRF2D

    num_classes, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, num_classes)
    energy = -probabilities.clamp(min=_MIN_PROBABILITY).log().float().cpu().numpy()
    crf.setUnaryEnergy(np.ascontiguousarray(energy.reshape(num_classes, -1)))
    sxy, compat = constants.smoothness
    crf.addPairwiseGaussian(sxy=sxy, compat=compat)
    rgb = np.ascontiguousarray(image.permute(1, 2, 0).cpu().numpy())
    sxy, srgb, compat = constants.appearance
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=rgb, compat=compat)
    labels = np.asarray(crf.inference(constants.iterations)).argmax(0).astype(np.uint8)
    return torch.from_numpy(labels.reshape(height, width))
