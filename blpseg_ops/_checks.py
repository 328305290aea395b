"""Checks of what users pass in. Errors name op and argument, what was expected and what came.

Shapes, dtypes and numbers are checked in the public functions, before dispatch, so that every
backend refuses the same things in the same words. Values of a target can only be read where the
data are; kernels call :func:`target_values` themselves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_TARGET_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def tensor(op: str, name: str, value: object) -> None:
    """Refuse what is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")


def maps(op: str, name: str, value: Tensor, dims: str) -> None:
    """Refuse what is not a floating-point tensor [N, C, h, w] with C, h, w >= 1."""
    tensor(op, name, value)
    if value.dim() != 4 or 0 in value.shape[1:]:
        raise ValueError(
            f"{op}: {name} must have shape {dims}, nothing but N zero, got {list(value.shape)}"
        )
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}")


def same_dtype(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two inputs of different dtypes, but under autocast, which makes them alike itself."""
    device_type = value.device.type
    autocast = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(
        device_type
    )
    if value.dtype != other.dtype and not autocast:
        raise TypeError(
            f"{op}: {name} must have the dtype of {other_name}, {other.dtype}, got {value.dtype}"
        )


def same_device(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two inputs on different devices."""
    if value.device != other.device:
        raise ValueError(
            f"{op}: {name} must be on the device of {other_name}, {other.device}, "
            f"got {value.device}"
        )


def same_grid(op: str, name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two inputs on different devices, or of different N, h or w."""
    same_device(op, name, value, other_name, other)
    if value.shape[0] != other.shape[0] or value.shape[2:] != other.shape[2:]:
        raise ValueError(
            f"{op}: {name} must have the batch, height and width of {other_name}, "
            f"{list(other.shape)}, got {list(value.shape)}"
        )


def target(op: str, value: Tensor, logits_name: str, logits: Tensor) -> None:
    """Refuse what is not a label map [N, H, W] for these logits."""
    tensor(op, "target", value)
    if value.dim() != 3 or 0 in value.shape[1:]:
        raise ValueError(f"{op}: target must have shape [N, H, W], got {list(value.shape)}")
    if value.dtype not in _TARGET_DTYPES:
        names = ", ".join(str(dtype) for dtype in _TARGET_DTYPES)
        raise TypeError(f"{op}: target must be one of {names}, got {value.dtype}")
    same_device(op, "target", value, logits_name, logits)
    if value.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{op}: target must have the batch size of {logits_name}, {logits.shape[0]}, "
            f"got {value.shape[0]}"
        )


def ignore_index(op: str, value: int, classes: int) -> None:
    """Refuse an ignore_index that is a class or the unlabelled mark."""
    if 0 <= value <= classes:
        raise ValueError(
            f"{op}: ignore_index must lie outside 0..{classes} (the classes and {classes}, "
            f"unlabelled), got {value}"
        )


def target_values(op: str, value: Tensor, classes: int, ignore: int) -> None:
    """Refuse a target with a value that is no class, not unlabelled and not to be ignored.

    On the CPU only: elsewhere looking would wait for the device.
    """
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return
    labels = value.long()  # a uint8 can't be compared with what it can't hold
    wrong = labels[((labels < 0) | (labels > classes)) & (labels != ignore)]
    if wrong.numel():
        raise ValueError(
            f"{op}: target must hold 0..{classes - 1} (a class), {classes} (unlabelled) or "
            f"{ignore} (ignore), got {int(wrong[0])}"
        )


def positive(op: str, name: str, value: float) -> None:
    """Refuse a number that is not > 0 (or not finite)."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{op}: {name} must be a finite number > 0, got {value}")


def not_negative(op: str, name: str, value: float) -> None:
    """Refuse a number that is not >= 0 (or not finite)."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{op}: {name} must be a finite number >= 0, got {value}")


def finite(op: str, name: str, value: float) -> None:
    """Refuse an infinite number or NaN."""
    if not abs(value) < float("inf"):
        raise ValueError(f"{op}: {name} must be a finite number, got {value}")


def size(op: str, value: Sequence[int]) -> None:
    """Refuse what is not (H, W) with H, W >= 1."""
    if len(value) != 2 or min(value) < 1:
        raise ValueError(f"{op}: size must be (H, W) with H, W >= 1, got {tuple(value)}")


def label_dtype(classes: int, ignore: int = 0) -> torch.dtype:
    """The dtype of label maps: uint8 where K and ignore_index fit, int32 where they do not."""
    return torch.uint8 if classes <= 255 and 0 <= ignore <= 255 else torch.int32
