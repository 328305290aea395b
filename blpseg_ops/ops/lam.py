"""``lam``: the local aggregation module as an op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blpseg_ops import _checks, backends, reference
from blpseg_ops._dtypes import accumulate_dtype
from blpseg_ops.fallback.lam import lam_backward, lam_forward
from blpseg_ops.fallback.lam_two_grids import memory_format_of
from blpseg_ops.fallback.layout import laid_out_as
from blpseg_ops.ops._register import register_op
from blpseg_ops.ops._vmap import vmap_by_batching
from blpseg_ops.ops.lam_two_grids import two_grids


def lam(
    features: Tensor,  # [N, D, h, w]
    values: Tensor,  # [N, C, h, w]
    sigma: float | Tensor = 6.0,
    *,
    queries: Tensor | None = None,  # [N, D, H, W]
    radius: float | None = None,
    eps: float = 0.0,
    scale: float = 1.0,
    backend: str = "auto",
) -> Tensor:  # [N, C, h, w], or [N, C, H, W] with queries
    """Replace every pixel's values by a mean over the pixels that are near and look alike.

    With features f, values v and positions p on the grid of key pixels a and query pixels b::

        w_ab  = exp(scale * <f_a, q_b> - |p_a - p_b|^2 / (2 sigma^2))
        out_b = sum_a w_ab v_a / (sum_a w_ab + eps * sum_a exp(scale * <f_a, q_b>))

    Without ``queries`` the features are the queries, q = f. ``queries`` lie on a grid of their own,
    of any height H and width W. The query at (Y, X) stands at ((Y + 0.5) h / H - 0.5,
    (X + 0.5) w / W - 0.5) in the grid of the keys, as in interpolation without aligned corners. So
    ``lam`` upsamples values along the borders that the queries show.

    Sums go over all keys of the image. ``radius`` restricts both sums to the keys at most
    ``radius`` rows and columns away from the query.

    With ``eps=0`` this is attention with a Gaussian bias added to the scores. Queries and keys are
    not normalized and not divided by sqrt(D). Gradients flow to features (as key and, without
    ``queries``, as query), values, queries, and to sigma if it is a tensor. Autocast widens all to
    float32, since scores are as large as |f|^2.

    Args:
        features: [N, D, h, w], floating point. Pixels with similar features look alike.
        values: [N, C, h, w], the dtype and device of features. Averaged; often logits.
        sigma: Standard deviation of the Gaussian, in pixels of the h x w grid, > 0. Infinity: no
            Gaussian. A 0-dim tensor gets a gradient; its value is not checked.
        queries: [N, D, H, W], the dtype and device of features; None: the features.
        radius: Half the side of the window, in pixels of the h x w grid: an int >= 0 or, with
            queries, a number >= 0.5, so that every query sees a key. Both sums leave out keys
            farther up, down, left or right; the cost is O(H W radius^2). None: the whole image.
        eps: Weight of the second sum of the denominator, >= 0. 0 is the published method, 1e-7 the
            published program.
        scale: Factor of the scores.
        backend: "auto", "reference" or the kernel of the device; see
            :func:`blpseg_ops.backends.available`.

    Returns:
        [N, C, h, w], the dtype of values, in the memory format of torch.empty_like(values). With
        queries [N, C, H, W], in channels_last if values are, else contiguous.
        Computed in float64 for float64, else in float32.

    Raises:
        TypeError: An input is not a tensor, not floating point, or the dtypes differ.
        ValueError: A shape, device, number or backend does not fit.

    Examples:
        Pixels 0 and 2 look alike and get their mean; pixel 1 looks different and keeps its value:

        >>> features = torch.tensor([8.0, -8.0, 8.0]).view(1, 1, 1, 3)
        >>> values = torch.tensor([1.0, 5.0, 2.0]).view(1, 1, 1, 3)
        >>> blpseg_ops.lam(features, values, sigma=1000.0).flatten()
        tensor([1.5000, 5.0000, 1.5000])

        Twice as many queries; each takes the values of the keys that look like it:

        >>> queries = torch.tensor([8.0, 8.0, 8.0, -8.0, -8.0, 8.0]).view(1, 1, 1, 6)
        >>> blpseg_ops.lam(features, values, sigma=1.0, queries=queries, radius=1).flatten()
        tensor([1., 1., 1., 5., 5., 2.])

    Source: Wang et al. 2023 (IEEE TIP 32), local aggregation module.
    """
    _checks.require_maps("lam", "features", features, "[N, D, h, w]")
    _checks.require_maps("lam", "values", values, "[N, C, h, w]")
    _checks.require_same_dtype("lam", "values", values, "features", features)
    _checks.require_same_grid("lam", "values", values, "features", features)
    _checks.require_sigma("lam", "sigma", sigma, "features", features)
    if queries is None:
        _checks.require_radius("lam", radius)
    else:
        _checks.require_queries("lam", queries, features, radius)
    _checks.require_not_negative("lam", "eps", eps)
    _checks.require_finite("lam", "scale", scale)
    if backends.use_reference("lam", values.device.type, backend):
        dense = reference.lam(
            features, values, sigma, queries=queries, radius=radius, eps=eps, scale=scale
        )
        if queries is None:
            return laid_out_as(dense, values)
        return dense.contiguous(memory_format=memory_format_of(values))
    if queries is not None or isinstance(sigma, Tensor):
        return two_grids(features, values, sigma, queries, radius, eps, scale)
    output: Tensor = lam_op(features, values, sigma, eps, scale, radius)[0]
    return output


def _fake(
    features: Tensor,
    values: Tensor,
    sigma: float,
    eps: float,
    scale: float,
    radius: int | None = None,
) -> tuple[Tensor, Tensor]:
    n, _, h, w = values.shape
    denominator = features.new_empty(n, h, w, dtype=accumulate_dtype(features.dtype))
    return torch.empty_like(values), denominator


def _fake_backward(
    grad_output: Tensor, features: Tensor, values: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(features), torch.empty_like(values)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, values, *ctx.params = inputs
    ctx.save_for_backward(features, values, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_output: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_output is None:  # only the annotation loss of a blp_objective after it is used
        return None, None, None, None, None, None
    grads = lam_backward_op(grad_output, *ctx.saved_tensors, *ctx.params)
    return *grads, None, None, None, None


lam_op = register_op(
    "lam",
    fallback=lam_forward,
    fake=_fake,
    vmap=vmap_by_batching,
    backward=_backward,
    setup_context=_setup_context,
    autocast_to_float32=True,
)
lam_backward_op = register_op(
    "lam_backward", fallback=lam_backward, fake=_fake_backward, vmap=vmap_by_batching
)
