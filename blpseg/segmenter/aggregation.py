"""LAM on the scores of a window: pixels that are near and look alike get similar scores.

With features of one length R, LAM's weight exp(<f_a, f_b>) is exp(R^2 - |f_a - f_b|^2 / 2): LAM is
a joint bilateral filter. Features are the colors, divided by a standard deviation, and one more
number that makes all lengths equal.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops
from blpseg.segmenter.windows import STRIDE

_COLOR_DEVIATION = 0.04  # of colors from 0 to 1
_LENGTH = 30.0  # of every feature; above that of any color, (3 / 4)^0.5 / 0.04 = 21.7
_PASSES = 3
_RADIUS = 3.0  # of LAM's window, in standard deviations of its Gaussian


@torch.no_grad()
def aggregate(
    image: Tensor,  # [C, H, W] from 0 to 1
    scores: Tensor,  # [K, h, w]
    sigma: float,
) -> Tensor:  # [K, h, w]
    """Replace scores by their local means, several times.

    Args:
        image: [C, H, W] from 0 to 1.
        scores: [K, ceil(H / 4), ceil(W / 4)] float32.
        sigma: Standard deviation of LAM's Gaussian, in cells of 4 x 4 pixels.
    """
    features = color_features(image)
    radius = round(_RADIUS * sigma)
    values = scores[None].contiguous()
    for _ in range(_PASSES):
        values = blpseg_ops.lam(features, values, sigma, radius=radius)
    return values[0]


def color_features(image: Tensor) -> Tensor:  # [C, H, W] -> [1, C + 1, h, w]
    """Return the features that LAM compares, one per cell."""
    bottom, right = (-side % STRIDE for side in image.shape[1:])
    padded = F.pad(image[None], (0, right, 0, bottom), mode="replicate")
    # As of three channels: more channels do not make two pixels more different.
    deviation = _COLOR_DEVIATION * (image.shape[0] / 3) ** 0.5
    colors = (F.avg_pool2d(padded, STRIDE) - 0.5) / deviation
    rest = (_LENGTH**2 - colors.square().sum(1, keepdim=True)).sqrt()
    return torch.cat([colors, rest], 1).contiguous()
