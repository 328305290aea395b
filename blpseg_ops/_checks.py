"""Checks of shapes, dtypes and numbers. An error names op and argument, what must be, what came.

The public functions call them before dispatch, so every backend refuses the same inputs in the same
words. Values of a target are checked in :mod:`blpseg_ops._targets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from blpseg_ops._targets import require_target_values_if_checked

_TARGET_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def require_tensor(op: str, name: str, value: object) -> None:
    """Require a dense tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got layout {value.layout}")


def require_maps(op: str, name: str, value: Tensor, dims: str) -> None:
    """Require a floating-point tensor [N, C, h, w] with C, h, w >= 1."""
    require_tensor(op, name, value)
    if value.dim() != 4 or 0 in value.shape[1:]:
        raise ValueError(
            f"{op}: {name} must be a non-empty {dims} tensor (only N may be 0), "
            f"got shape {list(value.shape)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}")


def require_same_dtype(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Require equal dtypes. Under autocast narrow dtypes may differ: all become float32."""
    if value.dtype == other.dtype:
        return
    device_type = value.device.type
    autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(
        device_type
    )
    if not autocast or torch.float64 in (value.dtype, other.dtype):
        raise TypeError(
            f"{op}: {name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}"
        )


def require_same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Require one device."""
    if value.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name}, {other.device}, "
            f"got {value.device}"
        )


def require_same_batch(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Require equal N."""
    if value.shape[0] != other.shape[0]:
        raise ValueError(
            f"{op}: {name} must have the batch size of {other_name}, {other.shape[0]}, "
            f"got {value.shape[0]}"
        )


def require_same_grid(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Require one device, and equal N, h and w."""
    require_same_device(op, name, value, other_name, other)
    if value.shape[0] != other.shape[0] or value.shape[2:] != other.shape[2:]:
        raise ValueError(
            f"{op}: {name} must have the batch size, height and width of {other_name}, "
            f"shape {list(other.shape)}, got shape {list(value.shape)}"
        )


def require_logits_pair(op: str, seg_logits: Tensor, annotation_logits: Tensor) -> None:
    """Require seg_logits [N, K, h, w] and annotation_logits [N, K + 1, h, w] that fit together."""
    require_maps(op, "seg_logits", seg_logits, "[N, K, h, w]")
    require_maps(op, "annotation_logits", annotation_logits, "[N, K + 1, h, w]")
    require_same_dtype(op, "annotation_logits", annotation_logits, "seg_logits", seg_logits)
    require_same_grid(op, "annotation_logits", annotation_logits, "seg_logits", seg_logits)
    channels = seg_logits.shape[1] + 1
    if annotation_logits.shape[1] != channels:
        raise ValueError(
            f"{op}: annotation_logits must have K + 1 = {channels} channels, one more than "
            f"seg_logits, got {annotation_logits.shape[1]}"
        )


def require_target(
    op: str, value: Tensor, logits_name: str, logits: Tensor, classes: int, ignore: int
) -> None:
    """Require a label map [N, H, W] for these logits, and an ignore_index that no label uses."""
    require_tensor(op, "target", value)
    if value.dim() != 3 or 0 in value.shape[1:]:
        raise ValueError(
            f"{op}: target must be a non-empty [N, H, W] tensor (only N may be 0), "
            f"got shape {list(value.shape)}"
        )
    if value.dtype not in _TARGET_DTYPES:
        names = ", ".join(str(dtype) for dtype in _TARGET_DTYPES)
        raise TypeError(f"{op}: target must have one of the dtypes {names}, got {value.dtype}")
    require_same_device(op, "target", value, logits_name, logits)
    require_same_batch(op, "target", value, logits_name, logits)
    if not isinstance(ignore, Integral):
        raise TypeError(f"{op}: ignore_index must be an int, got {ignore!r}")
    if 0 <= ignore <= classes:
        raise ValueError(
            f"{op}: ignore_index must be outside 0..{classes} (0..{classes - 1} are classes, "
            f"{classes} is unlabeled), got {ignore}"
        )
    require_target_values_if_checked(op, value, classes, ignore)


def require_class_present(op: str, value: Tensor, seg_logits: Tensor) -> None:
    """Require a bool per image and class."""
    require_tensor(op, "class_present", value)
    if value.dtype != torch.bool:
        raise TypeError(f"{op}: class_present must have dtype torch.bool, got {value.dtype}")
    if value.shape != seg_logits.shape[:2]:
        raise ValueError(
            f"{op}: class_present must have shape [N, K] = {list(seg_logits.shape[:2])}, "
            f"got {list(value.shape)}"
        )
    require_same_device(op, "class_present", value, "seg_logits", seg_logits)


def require_probability(op: str, name: str, value: float) -> None:
    """Require a number in 0..1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{op}: {name} must be in 0..1, got {value}")


def require_positive(op: str, name: str, value: float) -> None:
    """Require a finite number > 0."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{op}: {name} must be a finite number > 0, got {value}")


def require_sigma(op: str, name: str, value: float | Tensor, maps_name: str, maps: Tensor) -> None:
    """Require a number > 0 (infinity included), or a 0-dim floating-point tensor."""
    if isinstance(value, Tensor):
        require_tensor(op, name, value)
        if value.is_meta and not maps.is_meta:
            raise ValueError(
                f"{op}: {name} must hold a number, as {maps_name} on {maps.device} do, "
                "got a tensor on meta"
            )
        if value.dim() != 0 or not value.is_floating_point():
            raise ValueError(
                f"{op}: {name} must be a number > 0 or a 0-dim floating-point tensor, "
                f"got a tensor of shape {list(value.shape)} and {value.dtype}"
            )
    elif not value > 0:
        raise ValueError(f"{op}: {name} must be a number > 0, got {value}")


def require_not_negative(op: str, name: str, value: float) -> None:
    """Require a finite number >= 0."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{op}: {name} must be a finite number >= 0, got {value}")


def require_finite(op: str, name: str, value: float) -> None:
    """Require a finite number."""
    if not abs(value) < float("inf"):
        raise ValueError(f"{op}: {name} must be a finite number, got {value}")


def require_radius(op: str, value: float | None) -> None:
    """Require None or an int >= 0."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"{op}: radius must be None or an int >= 0, got {value!r}")


def require_queries(op: str, value: Tensor, features: Tensor, radius: float | None) -> None:
    """Require queries [N, D, H, W] for the features, and a radius by which each sees a key."""
    require_maps(op, "queries", value, "[N, D, H, W]")
    require_same_dtype(op, "queries", value, "features", features)
    require_same_device(op, "queries", value, "features", features)
    if value.shape[:2] != features.shape[:2]:
        raise ValueError(
            f"{op}: queries must have the batch size and channels of features, "
            f"shape {list(features.shape)}, got shape {list(value.shape)}"
        )
    require_half_side(op, radius, " with queries")


def require_half_side(op: str, value: float | None, condition: str = "") -> None:
    """Require None or a number >= 0.5."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0.5:
        raise ValueError(f"{op}: radius must be None or a number >= 0.5{condition}, got {value!r}")


def require_size(op: str, value: Sequence[int]) -> None:
    """Require (H, W) with H, W >= 1."""
    if len(value) != 2 or min(value) < 1:
        raise ValueError(f"{op}: size must be (H, W) with H, W >= 1, got {tuple(value)}")
