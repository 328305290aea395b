"""``annotation_loss``: the loss of the head that predicts where people annotate."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blpseg_ops import _checks, backends, reference
from blpseg_ops._dtypes import accumulate_dtype
from blpseg_ops._saved_pixels import ANNOTATION_PLANES, new_saved_pixels
from blpseg_ops._targets import call_with_target_errors
from blpseg_ops.fallback.annotation_loss import annotation_loss_backward, annotation_loss_forward
from blpseg_ops.ops._register import register_op
from blpseg_ops.ops._vmap import vmap_by_looping


def annotation_loss(
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    *,
    unlabeled_weight: float = 0.02,
    ignore_index: int = 255,
    backend: str = "auto",
) -> Tensor:  # []
    """Compute the cross entropy over K + 1 classes; the last is "nobody annotates here".

    Logits are first resized to H x W (bilinear, half-pixel centers). The weight is 1 at pixels of a
    class and ``unlabeled_weight`` at unlabeled pixels, which are nearly all. The weighted sum is
    divided by the sum of the weights over the batch. If every pixel is ignored, the loss is 0.
    Autocast widens logits to float32.

    Args:
        annotation_logits: [N, K + 1, h, w], floating point, at least two channels.
        target: [N, H, W], uint8, int16, int32 or int64: 0..K-1 (a class), K (unlabeled) or
            ignore_index.
        unlabeled_weight: Weight of unlabeled pixels, >= 0.
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
        2 classes and "nobody", all equally likely: log 3, however few pixels are labeled.

        >>> target = torch.tensor([[[0, 2], [2, 2]]])  # one pixel of class 0; 2 is unlabeled
        >>> loss = blpseg_ops.annotation_loss(torch.zeros(1, 3, 1, 1), target)
        >>> round(loss.item(), 3)
        1.099

    Source: Wang et al. 2023 (IEEE TIP 32), annotation branch.
    """
    _checks.require_maps(
        "annotation_loss", "annotation_logits", annotation_logits, "[N, K + 1, h, w]"
    )
    classes = annotation_logits.shape[1] - 1
    if classes < 1:
        raise ValueError("annotation_loss: annotation_logits must have K + 1 >= 2 channels, got 1")
    _checks.require_target(
        "annotation_loss", target, "annotation_logits", annotation_logits, classes, ignore_index
    )
    _checks.require_not_negative("annotation_loss", "unlabeled_weight", unlabeled_weight)
    if backends.use_reference("annotation_loss", annotation_logits.device.type, backend):
        return reference.annotation_loss(
            annotation_logits, target, unlabeled_weight=unlabeled_weight, ignore_index=ignore_index
        )
    loss: Tensor = call_with_target_errors(
        annotation_loss_op, annotation_logits, target, unlabeled_weight, ignore_index
    )[0]
    return loss


def _fake(
    annotation_logits: Tensor, target: Tensor, unlabeled_weight: float, ignore_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = accumulate_dtype(annotation_logits.dtype)
    return (
        annotation_logits.new_empty((), dtype=dtype),
        annotation_logits.new_empty((), dtype=dtype),
        new_saved_pixels(annotation_logits, target, ANNOTATION_PLANES),
    )


def _fake_backward(grad_loss: Tensor, annotation_logits: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(annotation_logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    annotation_logits, target, *ctx.params = inputs
    ctx.save_for_backward(annotation_logits, target, *output[1:])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad_loss: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    grad = annotation_loss_backward_op(grad_loss, *ctx.saved_tensors, *ctx.params)
    return grad, None, None, None


annotation_loss_op = register_op(
    "annotation_loss",
    fallback=annotation_loss_forward,
    fake=_fake,
    vmap=vmap_by_looping,
    backward=_backward,
    setup_context=_setup_context,
    autocast_to_float32=True,
)
annotation_loss_backward_op = register_op(
    "annotation_loss_backward",
    fallback=annotation_loss_backward,
    fake=_fake_backward,
    vmap=vmap_by_looping,
)
