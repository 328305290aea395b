"""``joint_bilateral``: the exact joint bilateral filter, written on ``lam``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blpseg_ops import _checks
from blpseg_ops._dtypes import accumulate_dtype
from blpseg_ops._precision import no_autocast
from blpseg_ops.ops.lam import lam


def joint_bilateral(
    guide: Tensor,  # [N, G, H, W]
    values: Tensor,  # [N, C, h, w]
    sigma_space: float | Tensor = 3.0,
    sigma_color: float | Tensor = 0.1,
    size: Sequence[int] | None = None,
    *,
    radius: float | None = None,
    backend: str = "auto",
) -> Tensor:  # [N, C, H, W]
    """Smooth or upsample values along the borders that a guide image shows.

    With the guide's colors c, values v and positions p in the values' grid::

        w_ab  = exp(-|c_a - c_b|^2 / (2 sigma_color^2) - |p_a - p_b|^2 / (2 sigma_space^2))
        out_b = sum_a w_ab v_a / sum_a w_ab

    The sums go over all pixels a of the values, or over those in a window. c_a is the mean of the
    guide over the values' pixel a. Since -|c_a - c_b|^2 / 2 = <c_a, c_b> - |c_a|^2 / 2 - |c_b|^2 /
    2, and the last term is the same for all a, this is ``lam`` with queries (c_b, 1) and keys
    (c_a, -|c_a|^2 / 2). The filter is exact, and every tensor gets its gradient.

    Args:
        guide: [N, G, H, W], floating point, often an image, at the size of the output.
        values: [N, C, h, w], the dtype and device of guide, of any height and width.
        sigma_space: Standard deviation in space, in pixels of the values, > 0; or a 0-dim tensor.
        sigma_color: Standard deviation of the colors, in the guide's unit, > 0; or a 0-dim tensor.
        size: (H, W) of the output if it is not that of the guide, which is resized first.
        radius: Half the side of the window, in pixels of the values, >= 0.5; None: the whole map.
        backend: See :func:`blpseg_ops.lam`.

    Returns:
        [N, C, H, W], the dtype of values, computed in float64 for float64, else in float32.

    Raises:
        TypeError: An input is not a tensor, not floating point, or the dtypes differ.
        ValueError: A shape, device, number or backend does not fit.

    Examples:
        A step of the values between pixels of the guide moves to the guide's own step:

        >>> guide = torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1]).view(1, 1, 1, 8)
        >>> values = torch.tensor([2.0, 2, 5, 5]).view(1, 1, 1, 4)
        >>> blpseg_ops.joint_bilateral(guide, values, 1.0, 0.1).flatten().round(decimals=2)
        tensor([2., 2., 2., 2., 2., 5., 5., 5.])

    Source: Kopf et al. 2007 (ACM TOG 26), joint bilateral upsampling.
    """
    _checks.require_maps("joint_bilateral", "guide", guide, "[N, G, H, W]")
    _checks.require_maps("joint_bilateral", "values", values, "[N, C, h, w]")
    _checks.require_same_dtype("joint_bilateral", "values", values, "guide", guide)
    _checks.require_same_device("joint_bilateral", "values", values, "guide", guide)
    _checks.require_same_batch("joint_bilateral", "values", values, "guide", guide)
    _checks.require_sigma("joint_bilateral", "sigma_space", sigma_space, "guide", guide)
    _checks.require_sigma("joint_bilateral", "sigma_color", sigma_color, "guide", guide)
    if size is not None:
        _checks.require_size("joint_bilateral", size)
    _checks.require_half_side("joint_bilateral", radius)
    dtype = accumulate_dtype(values.dtype)
    with no_autocast(guide.device):
        fine = guide.to(dtype)
        if size is not None:
            fine = F.interpolate(fine, tuple(size), mode="bilinear", antialias=True)
        fine = (fine - fine.mean((2, 3), keepdim=True)) / sigma_color  # small scores round less
        coarse = F.adaptive_avg_pool2d(fine, (values.shape[2], values.shape[3]))
        queries = torch.cat([fine, torch.ones_like(fine[:, :1])], 1)
        keys = torch.cat([coarse, -coarse.square().sum(1, keepdim=True) / 2], 1)
        output = lam(
            keys, values.to(dtype), sigma_space, queries=queries, radius=radius, backend=backend
        )
    return output.to(values.dtype)
