"""``pseudo_labels``: the targets of self-training."""

from __future__ import annotations

from torch import Tensor

from blpseg_ops import _checks, backends, reference
from blpseg_ops._dtypes import label_dtype
from blpseg_ops._targets import call_with_target_errors
from blpseg_ops.ops._register import register_op
from blpseg_ops.ops._vmap import vmap_by_batching


def pseudo_labels(
    seg_logits: Tensor,  # [N, K, h, w]
    target: Tensor,  # [N, H, W]
    class_present: Tensor,  # [N, K] bool
    *,
    threshold: float = 0.9,
    ignore_index: int = 255,
    backend: str = "auto",
) -> Tensor:  # [N, H, W]
    """Label the pixels that the network is sure of, and keep the scribbles.

    Logits are resized to H x W (bilinear, half-pixel centers). p is their softmax over all K
    classes, then set to 0 for classes absent from the image's scribbles. A pixel gets the class of
    the largest p (ties: the lowest class) if that p is at least ``threshold``, else
    ``ignore_index``. Scribbled pixels keep their label; ignored pixels stay ignored. There is no
    gradient.

    Args:
        seg_logits: [N, K, h, w], floating point.
        target: [N, H, W], uint8, int16, int32 or int64: 0..K-1 (a class), K (unlabeled) or
            ignore_index.
        class_present: [N, K] bool, the classes among each image's scribbles.
        threshold: Smallest probability of a label, 0..1.
        ignore_index: Value of pixels without a label; outside 0..K.
        backend: "auto", "reference" or the kernel of the device; see
            :func:`blpseg_ops.backends.available`.

    Returns:
        [N, H, W] label map, uint8 if K and ignore_index fit, else int32.

    Raises:
        TypeError: An input is not a tensor or has the wrong dtype.
        ValueError: A shape, device, number or backend does not fit, or target holds another value.
            On CUDA a wrong value is a device assertion, as in torch's cross_entropy, or this error
            under :func:`blpseg_ops.checked_targets`.

    Examples:
        The network is sure that pixels 0 and 1 are of class 0; a scribble says class 1 at pixel 1:

        >>> seg_logits = torch.tensor([[5.0, 5.0, 0.1], [0.0, 0.0, 0.0]]).view(1, 2, 1, 3)
        >>> target = torch.tensor([[[2, 1, 2]]])  # 2 is unlabeled
        >>> blpseg_ops.pseudo_labels(seg_logits, target, torch.tensor([[True, True]]))
        tensor([[[  0,   1, 255]]], dtype=torch.uint8)

    Source: Wang et al. 2023 (IEEE TIP 32), self-training.
    """
    _checks.require_maps("pseudo_labels", "seg_logits", seg_logits, "[N, K, h, w]")
    classes = seg_logits.shape[1]
    _checks.require_target("pseudo_labels", target, "seg_logits", seg_logits, classes, ignore_index)
    _checks.require_class_present("pseudo_labels", class_present, seg_logits)
    _checks.require_probability("pseudo_labels", "threshold", threshold)
    if backends.use_reference("pseudo_labels", seg_logits.device.type, backend):
        return reference.pseudo_labels(
            seg_logits.detach(),
            target,
            class_present,
            threshold=threshold,
            ignore_index=ignore_index,
        )
    labels: Tensor = call_with_target_errors(
        pseudo_labels_op,
        seg_logits.detach(),
        target,
        class_present,
        threshold,
        ignore_index,
    )
    return labels


def _fallback(
    seg_logits: Tensor, target: Tensor, class_present: Tensor, threshold: float, ignore_index: int
) -> Tensor:
    return reference.pseudo_labels(
        seg_logits, target, class_present, threshold=threshold, ignore_index=ignore_index
    )


def _fake(
    seg_logits: Tensor, target: Tensor, class_present: Tensor, threshold: float, ignore_index: int
) -> Tensor:
    dtype = label_dtype(seg_logits.shape[1], ignore_index)
    return target.new_empty(target.shape, dtype=dtype)


pseudo_labels_op = register_op(
    "pseudo_labels", fallback=_fallback, fake=_fake, vmap=vmap_by_batching
)
