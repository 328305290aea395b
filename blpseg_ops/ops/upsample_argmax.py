"""``upsample_argmax``: from low-resolution logits to the predicted label map."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from blpseg_ops import _checks, backends, reference
from blpseg_ops._dtypes import label_dtype
from blpseg_ops.ops._register import register_op
from blpseg_ops.ops._vmap import vmap_by_batching


def upsample_argmax(
    logits: Tensor,  # [N, K, h, w]
    size: Sequence[int],  # (H, W)
    *,
    backend: str = "auto",
) -> Tensor:  # [N, H, W]
    """Return the class of the largest resized logit per pixel, without storing resized logits.

    Logits are resized to H x W (bilinear, half-pixel centers, any factor). The lowest class wins a
    tie. NaN counts as the largest, as in torch.argmax. There is no gradient.

    Args:
        logits: [N, K, h, w], floating point.
        size: (H, W), in pixels.
        backend: "auto", "reference" or the kernel of the device; see
            :func:`blpseg_ops.backends.available`.

    Returns:
        [N, H, W] label map, uint8 for K <= 255, else int32.

    Raises:
        TypeError: logits are not a floating-point tensor.
        ValueError: A shape, size or backend does not fit.

    Examples:
        >>> logits = torch.tensor([[3.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # 2 classes, 2 pixels
        >>> blpseg_ops.upsample_argmax(logits, size=(1, 8))
        tensor([[[0, 0, 0, 0, 0, 1, 1, 1]]], dtype=torch.uint8)
    """
    _checks.require_maps("upsample_argmax", "logits", logits, "[N, K, h, w]")
    _checks.require_size("upsample_argmax", size)
    if backends.use_reference("upsample_argmax", logits.device.type, backend):
        return reference.upsample_argmax(logits.detach(), size)
    labels: Tensor = upsample_argmax_op(logits.detach(), size)
    return labels


def _fake(logits: Tensor, size: Sequence[int]) -> Tensor:
    dtype = label_dtype(logits.shape[1])
    return logits.new_empty(logits.shape[0], *size, dtype=dtype)


upsample_argmax_op = register_op(
    "upsample_argmax", fallback=reference.upsample_argmax, fake=_fake, vmap=vmap_by_batching
)
