"""``blp_objective``: both losses of a training step, and the pseudo labels, in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from blpseg_ops import _checks, backends, reference
from blpseg_ops._dtypes import accumulate_dtype, label_dtype
from blpseg_ops._saved_pixels import ANNOTATION_PLANES, BLP_PLANES, new_saved_pixels
from blpseg_ops._targets import call_with_target_errors
from blpseg_ops.fallback.blp_objective import blp_objective_backward, blp_objective_forward
from blpseg_ops.ops._register import register_op
from blpseg_ops.ops._vmap import vmap_by_looping
from blpseg_ops.ops.annotation_loss import annotation_loss_backward_op
from blpseg_ops.ops.blp_loss import blp_loss_backward_op
from blpseg_ops.reference.blp_objective import BLPObjective


def blp_objective(
    seg_logits: Tensor,  # [N, K, h, w]
    annotation_logits: Tensor,  # [N, K + 1, h, w]
    target: Tensor,  # [N, H, W]
    *,
    gamma: float = 2.0,
    unlabeled_weight: float = 0.02,
    class_present: Tensor | None = None,  # [N, K] bool
    threshold: float = 0.9,
    ignore_index: int = 255,
    backend: str = "auto",
) -> BLPObjective:
    """Compute the losses of a training step, :func:`blp_loss` and :func:`annotation_loss`, at once.

    With ``class_present``, the step is one of self-training: the BLP loss takes
    :func:`pseudo_labels` of seg_logits and target as its target. The annotation loss takes the
    target itself, since pseudo labels do not tell where people annotate.

    The BLP loss gives a gradient to ``seg_logits`` only, the annotation loss to
    ``annotation_logits`` only. The sum of both therefore trains each once. Autocast widens logits
    to float32.

    Args:
        seg_logits: [N, K, h, w], floating point.
        annotation_logits: [N, K + 1, h, w], the dtype and device of seg_logits; channel K is
            "nobody annotates here".
        target: [N, H, W], uint8, int16, int32 or int64: 0..K-1 (a class), K (unlabeled) or
            ignore_index.
        gamma: Exponent of the BLP weight, >= 0.
        unlabeled_weight: Weight of unlabeled pixels in the annotation loss, >= 0.
        class_present: [N, K] bool, the classes among each image's scribbles; None to train on the
            target alone.
        threshold: Smallest probability of a pseudo label, 0..1.
        ignore_index: Value of pixels to ignore and of pixels without a pseudo label; outside 0..K.
        backend: "auto", "reference" or the kernel of the device; see
            :func:`blpseg_ops.backends.available`.

    Returns:
        A named tuple: ``blp_loss`` and ``annotation_loss``, scalars, float64 for float64 logits,
        else float32; ``pseudo_labels``, [N, H, W], uint8 if K and ignore_index fit, else int32,
        or None without class_present.

    Raises:
        TypeError: An input is not a tensor or has the wrong dtype.
        ValueError: A shape, device, number or backend does not fit, or target holds another value.
            On CUDA a wrong value is a device assertion, as in torch's cross_entropy, or this error
            under :func:`blpseg_ops.checked_targets`.

    Examples:
        >>> seg_logits = torch.zeros(1, 2, 1, 1, requires_grad=True)
        >>> annotation_logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
        >>> target = torch.tensor([[[0, 2], [2, 2]]])  # one pixel of class 0; 2 is unlabeled
        >>> losses = blpseg_ops.blp_objective(seg_logits, annotation_logits, target)
        >>> (losses.blp_loss + losses.annotation_loss).backward()
        >>> losses.pseudo_labels is None
        True

    Source: Wang et al. 2023 (IEEE TIP 32), the training objective and self-training.
    """
    _checks.require_logits_pair("blp_objective", seg_logits, annotation_logits)
    classes = seg_logits.shape[1]
    _checks.require_target("blp_objective", target, "seg_logits", seg_logits, classes, ignore_index)
    _checks.require_not_negative("blp_objective", "gamma", gamma)
    _checks.require_not_negative("blp_objective", "unlabeled_weight", unlabeled_weight)
    if class_present is not None:
        _checks.require_class_present("blp_objective", class_present, seg_logits)
    _checks.require_probability("blp_objective", "threshold", threshold)
    if backends.use_reference("blp_objective", seg_logits.device.type, backend):
        return reference.blp_objective(
            seg_logits,
            annotation_logits,
            target,
            gamma=gamma,
            unlabeled_weight=unlabeled_weight,
            class_present=class_present,
            threshold=threshold,
            ignore_index=ignore_index,
        )
    blp_loss, annotation_loss, _, _, labels, *_ = call_with_target_errors(
        blp_objective_op,
        seg_logits,
        annotation_logits,
        target,
        class_present,
        gamma,
        unlabeled_weight,
        threshold,
        ignore_index,
    )
    return BLPObjective(blp_loss, annotation_loss, None if class_present is None else labels)


def _fake(
    seg_logits: Tensor,
    annotation_logits: Tensor,
    target: Tensor,
    class_present: Tensor | None,
    gamma: float,
    unlabeled_weight: float,
    threshold: float,
    ignore_index: int,
) -> tuple[Tensor, ...]:
    n, classes = seg_logits.shape[:2]
    dtype = accumulate_dtype(seg_logits.dtype)
    blp_loss, annotation_loss, annotation_weight_sum = (
        seg_logits.new_empty((), dtype=dtype) for _ in range(3)
    )
    labels = target.new_empty(
        (0,) if class_present is None else target.shape,
        dtype=label_dtype(classes, ignore_index),
    )
    blp_weight_sum = seg_logits.new_empty(n, dtype=dtype)
    return (
        blp_loss,
        annotation_loss,
        blp_weight_sum,
        annotation_weight_sum,
        labels,
        new_saved_pixels(seg_logits, target, BLP_PLANES),
        new_saved_pixels(annotation_logits, target, ANNOTATION_PLANES),
    )


def _fake_backward(
    grad_blp_loss: Tensor,
    grad_annotation_loss: Tensor,
    seg_logits: Tensor,
    annotation_logits: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(seg_logits), torch.empty_like(annotation_logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    seg_logits, annotation_logits, target, class_present, *params = inputs
    ctx.gamma, ctx.unlabeled_weight, _, ctx.ignore_index = params
    _, _, *weight_sums, labels, blp_pixels, annotation_pixels = output
    blp_target = target if class_present is None else labels
    saved_pixels = blp_pixels, annotation_pixels
    ctx.save_for_backward(
        seg_logits, annotation_logits, blp_target, target, *weight_sums, *saved_pixels
    )
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # an unused loss gets None and costs nothing


def _backward(
    ctx: Any, grad_blp_loss: Tensor | None, grad_annotation_loss: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    seg_logits, annotation_logits, blp_target, target, *saved = ctx.saved_tensors
    blp_weight_sum, annotation_weight_sum, blp_pixels, annotation_pixels = saved
    grad_seg = grad_annotation = None
    seg = ctx.needs_input_grad[0] and grad_blp_loss is not None
    annotation = ctx.needs_input_grad[1] and grad_annotation_loss is not None
    if seg and annotation:
        grad_seg, grad_annotation = blp_objective_backward_op(
            grad_blp_loss,
            grad_annotation_loss,
            *ctx.saved_tensors,
            ctx.gamma,
            ctx.unlabeled_weight,
            ctx.ignore_index,
        )
    elif seg:
        grad_seg = blp_loss_backward_op(
            grad_blp_loss,
            seg_logits,
            annotation_logits,
            blp_target,
            blp_weight_sum,
            blp_pixels,
            ctx.gamma,
            ctx.ignore_index,
        )
    elif annotation:
        grad_annotation = annotation_loss_backward_op(
            grad_annotation_loss,
            annotation_logits,
            target,
            annotation_weight_sum,
            annotation_pixels,
            ctx.unlabeled_weight,
            ctx.ignore_index,
        )
    return grad_seg, grad_annotation, None, None, None, None, None, None


blp_objective_op = register_op(
    "blp_objective",
    fallback=blp_objective_forward,
    fake=_fake,
    vmap=vmap_by_looping,
    backward=_backward,
    setup_context=_setup_context,
    autocast_to_float32=True,
)
blp_objective_backward_op = register_op(
    "blp_objective_backward",
    fallback=blp_objective_backward,
    fake=_fake_backward,
    vmap=vmap_by_looping,
)
