"""Upsamplers of others, their attention written on lam: python examples/feature_upsampling.py.

Only the attention is here, not the networks that make queries and keys. Where borders differ: these
leave out keys beyond the image; FeatUp reflects them, and NAF shifts its window inside.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops


def featup_jbu(
    source: Tensor,  # [N, C, h, w]
    projected_guide: Tensor,  # [N, D, H, W]
    temperature: float,
    sigma_spatial: float,
    radius: int = 3,
) -> Tensor:  # [N, C, H, W]
    """FeatUp's joint bilateral upsampling (Fu et al. 2024): one stage, without its CUDA extension.

    Its spatial kernel counts in windows: a distance of 1 is `radius` pixels.
    """
    resized = F.interpolate(source, projected_guide.shape[2:], mode="bicubic")
    sigma = radius * sigma_spatial
    return blpseg_ops.lam(projected_guide, resized, sigma, radius=radius, scale=temperature)


def anyup_attention(
    queries: Tensor,  # [N, D, H, W]
    keys: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    radius: float,
) -> Tensor:  # [N, C, H, W]
    """AnyUp's local cross attention (Wimmer et al. 2025): softmax over the keys of a window."""
    scale = queries.shape[1] ** -0.5
    return blpseg_ops.lam(keys, values, math.inf, queries=queries, radius=radius, scale=scale)


def rotate(maps: Tensor, base: float = 100.0) -> Tensor:  # [N, D, H, W], D a multiple of 4
    """Rotary position embedding: positions from -1 to 1, half of the channels for each axis."""
    dim, height, width = maps.shape[1:]
    frequency = base ** (-torch.arange(dim // 4) / (dim // 4)) * math.pi
    y, x = ((torch.arange(side) + 0.5) / side * 2 - 1 for side in (height, width))
    angle = torch.cat(
        [
            (frequency[:, None, None] * y[:, None]).expand(-1, height, width),
            (frequency[:, None, None] * x).expand(-1, height, width),
        ]
    )
    even, odd = maps[:, 0::2], maps[:, 1::2]
    cos, sin = angle.cos().to(maps), angle.sin().to(maps)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], 2).flatten(1, 2)


def naf_attention(
    queries: Tensor,  # [N, D, H, W]
    keys: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    kernel: int = 9,
) -> Tensor:  # [N, C, H, W]
    """NAF's neighborhood attention (Chambon et al. 2025): rotary positions, `kernel`^2 keys."""
    return anyup_attention(rotate(queries), rotate(keys), values, kernel / 2)


if __name__ == "__main__":
    guide, features = torch.randn(1, 32, 64, 64), torch.randn(1, 384, 8, 8)
    keys = F.adaptive_avg_pool2d(guide, (8, 8))
    print("FeatUp", tuple(featup_jbu(features, guide, 0.1, 1.0).shape))
    print("AnyUp", tuple(anyup_attention(guide, keys, features, 1.5).shape))
    print("NAF", tuple(naf_attention(guide, keys, features).shape))
