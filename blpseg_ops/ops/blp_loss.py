"""``blp_loss``: cross entropy with larger weights where people rarely scribble."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blpseg_ops import _checks, backends, reference
from blpseg_ops._dtypes import accumulate_dtype
from blpseg_ops._saved_pixels import BLP_PLANES, new_saved_pixels
from blpseg_ops._targets import call_with_target_errors
from blpseg_ops.fallback.blp_loss import blp_loss_backward, blp_loss_forward
from blpseg_ops.ops._register import register_op
from blpseg_ops.ops._vmap import vmap_by_looping


def blp_loss(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    *,
    gamma: float = 2.0,
    ignore_index: int = 255,
    backend: str = "auto",
) -> Tensor:  # []
    """Compute the cross entropy at labeled pixels with the weights (1 - q_y p_y)^gamma.

    Both logits are first resized to H x W (bilinear, half-pixel centers). p is the softmax of the
    class logits, q the softmax of the annotation logits: q_y is the probability that people label
    this pixel y. The weight is largest where people rarely scribble and where the network is not
    sure. The loss of an image is divided by the sum of its weights plus 1e-7; the result is the
    mean over images. An image without labeled pixels gives 0. ``gamma=0`` is the partial cross
    entropy.

    Only ``seg_logits`` gets a gradient; the weights are constants in backward. Autocast widens
    logits to float32.

    Args:
        seg_logits: [N, K, h, w], floating point.
        annotation_logits: [N, K + 1, h, w], the dtype and device of seg_logits; channel K is
            "nobody annotates here".
        target: [N, H, W], uint8, int16, int32 or int64: 0..K-1 (a class), K (unlabeled) or
            ignore_index.
        gamma: Exponent of the weight, >= 0.
        ignore_index: Value of pixels to ignore; outside 0..K.
        backend: "auto", "reference" or the kernel of the device; see
            :func:`blpseg_ops.backends.available`.

    Returns:
        A scalar, float64 for float64 logits, else float32.

    Raises:
        TypeError: An input is not a tensor or has the wrong dtype.
        ValueError: A shape, device, number or backend does not fit, or target holds another value.
            On CUDA a wrong value is a device assertion, as in torch's cross_entropy, or this error
            under :func:`blpseg_ops.checked_targets`.

    Examples:
        One pixel of 4 is labeled, 2 classes are equally likely: the loss is log 2.

        >>> seg_logits = torch.zeros(1, 2, 1, 1, requires_grad=True)
        >>> target = torch.tensor([[[0, 2], [2, 2]]])  # class 0; 2 is unlabeled
        >>> loss = blpseg_ops.blp_loss(seg_logits, torch.zeros(1, 3, 1, 1), target)
        >>> round(loss.item(), 3)
        0.693
        >>> loss.backward()
        >>> seg_logits.grad.flatten()
        tensor([-0.5000,  0.5000])

    Source: Wang et al. 2023 (IEEE TIP 32), BLP loss.
    """
    _checks.require_logits_pair("blp_loss", seg_logits, annotation_logits)
    classes = seg_logits.shape[1]
    _checks.require_target("blp_loss", target, "seg_logits", seg_logits, classes, ignore_index)
    _checks.require_not_negative("blp_loss", "gamma", gamma)
    if backends.use_reference("blp_loss", seg_logits.device.type, backend):
        return reference.blp_loss(
            seg_logits, annotation_logits, target, gamma=gamma, ignore_index=ignore_index
        )
    loss: Tensor = call_with_target_errors(
        blp_loss_op, seg_logits, annotation_logits, target, gamma, ignore_index
    )[0]
    return loss


def _fake(
    seg_logits: Tensor, annotation_logits: Tensor, target: Tensor, gamma: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(seg_logits.dtype)
    return (
        seg_logits.new_empty((), dtype=dtype),
        seg_logits.new_empty(seg_logits.shape[0], dtype=dtype),
        new_saved_pixels(seg_logits, target, BLP_PLANES),
    )


def _fake_backward(grad_loss: Tensor, seg_logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(seg_logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    seg_logits, annotation_logits, target, *ctx.params = inputs
    ctx.save_for_backward(seg_logits, annotation_logits, target, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    if not ctx.needs_input_grad[0]:  # annotation_logits have no gradient
        return None, None, None, None, None
    grad = blp_loss_backward_op(grad_loss, *ctx.saved_tensors, *ctx.params)
    return grad, None, None, None, None


blp_loss_op = register_op(
    "blp_loss",
    fallback=blp_loss_forward,
    fake=_fake,
    vmap=vmap_by_looping,
    backward=_backward,
    setup_context=_setup_context,
    autocast_to_float32=True,
)
blp_loss_backward_op = register_op(
    "blp_loss_backward", fallback=blp_loss_backward, fake=_fake_backward, vmap=vmap_by_looping
)
