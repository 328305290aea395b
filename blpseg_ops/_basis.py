"""An orthonormal basis of everything that LocalAggregation's embedding can be.

The embedding conv(LayerNorm(proj(patch))) has D channels but few degrees of freedom. LayerNorm
subtracts the mean over channels, divides by one number per pixel, and applies gain and bias. So the
embedding is a combination of the columns of proj and of its bias, each centered, times the gain,
mapped by conv, plus one constant vector: in_channels * patch^2 + 2 vectors span it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Added to the squared length, 1, of each normalized vector. It keeps a pivot positive if a vector
# depends on those before it, and changes products of features by this much relatively.
_SHIFT = 1e-13


@torch.no_grad()
def embedding_basis(
    proj: nn.Conv2d, norm: nn.LayerNorm, conv: nn.Conv2d
) -> Tensor:  # [D, in_channels * patch^2 + 2], the dtype of conv
    """Return the basis Q, coordinates that vary most in photos first.

    Photos vary smoothly. The patch's columns are therefore taken in order of spatial frequency.
    """
    assert proj.bias is not None
    assert conv.bias is not None
    patch = proj.weight.shape[-1]
    kernels, mixing = proj.weight.double(), conv.weight.double().flatten(1)
    gain = mixing * norm.weight.double()
    gain = gain - gain.mean(1, keepdim=True)  # LayerNorm subtracts the mean

    step = torch.arange(patch, dtype=gain.dtype, device=gain.device)
    waves = torch.cos(math.pi / patch * (step + 0.5) * step[:, None])  # [frequency, pixel]
    columns = torch.einsum("dcyx,ky,lx->dklc", kernels, waves, waves).flatten(1, 2)
    by_frequency = (step[:, None] + step).flatten().argsort(stable=True)
    mean_color, others = columns[:, by_frequency].flatten(1).tensor_split([proj.in_channels], 1)

    of_bias = (gain @ proj.bias.double())[:, None]
    constant = (mixing @ norm.bias.double() + conv.bias.double())[:, None]
    span = torch.cat([gain @ mean_color, of_bias, gain @ others, constant], 1)
    return orthonormalize(span).to(conv.weight.dtype)


def orthonormalize(
    vectors: Tensor,  # [D, R] float64
) -> Tensor:  # [D, R]
    """Return Q with Q Q^T v = v for every v in the span of the vectors, in Gram-Schmidt's order.

    Cholesky-QR: eliminate in [G | A^T], with the Gram matrix G = A^T A; L^-1 A^T = Q^T is left.
    It consists of matrix products and pointwise kernels. torch.linalg.qr and cholesky call
    cuSOLVER, which does not promise to work inside a captured CUDA graph. Products <Q^T u, Q^T v>
    are as exact as G, to about 1e-15, even if the vectors are nearly dependent. A vector that
    depends on earlier vectors gives a column of almost zero.
    """
    count = vectors.shape[1]
    vectors = vectors / vectors.norm(dim=0).clamp(min=torch.finfo(vectors.dtype).tiny)
    gram = vectors.mT @ vectors
    gram = gram + _SHIFT * torch.eye(count, dtype=gram.dtype, device=gram.device)
    rows = torch.cat([gram, vectors.mT], 1)  # [R, R + D]
    eliminated = []
    for k in range(count):
        row = rows[k]
        eliminated.append(row)
        rows = torch.addr(rows, rows[:, k] / row[k], row, alpha=-1)
    rows = torch.stack(eliminated)
    return (rows[:, count:] * rows.diagonal().rsqrt()[:, None]).mT
