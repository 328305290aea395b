"""Checks of what users pass in. Errors name op and argument, what was expected and what came.

Shapes, dtypes and numbers are checked in the public functions, before dispatch, so that every
backend refuses the same things in the same words. Values of a target can only be read where the
data are, so each implementation looks at them itself, in the words of :func:`target_values`; under
:func:`checked_targets` the public functions look as well, on any device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

_checked: ContextVar[bool] = ContextVar("blpseg_checked_targets", default=False)

_TARGET_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)


def tensor(op: str, name: str, value: object) -> None:
    """Refuse what is not a tensor, or one without strides: sparse ones, say."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a dense tensor, got one of {value.layout}")


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
    """Refuse two inputs of different dtypes, unless autocast, which leaves float64, mends it."""
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


def both_logits(op: str, seg_logits: Tensor, annotation_logits: Tensor) -> None:
    """Refuse what are not logits [N, K, h, w] of classes and [N, K + 1, h, w] of annotation."""
    maps(op, "seg_logits", seg_logits, "[N, K, h, w]")
    maps(op, "annotation_logits", annotation_logits, "[N, K + 1, h, w]")
    same_dtype(op, "annotation_logits", annotation_logits, "seg_logits", seg_logits)
    same_grid(op, "annotation_logits", annotation_logits, "seg_logits", seg_logits)
    channels = seg_logits.shape[1] + 1
    if annotation_logits.shape[1] != channels:
        raise ValueError(
            f"{op}: annotation_logits must have K + 1 = {channels} channels, one more than "
            f"seg_logits, got {annotation_logits.shape[1]}"
        )


def target(
    op: str, value: Tensor, logits_name: str, logits: Tensor, classes: int, ignore: int
) -> None:
    """Refuse what is not a label map [N, H, W] for these logits, and an ignore_index that is used.

    Its values are looked at under :func:`checked_targets` alone.
    """
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
    if not isinstance(ignore, Integral):
        raise TypeError(f"{op}: ignore_index must be an int, got {ignore!r}")
    if 0 <= ignore <= classes:
        raise ValueError(
            f"{op}: ignore_index must lie outside 0..{classes} (the classes and {classes}, "
            f"unlabelled), got {ignore}"
        )
    if not torch.compiler.is_compiling() and _checked.get():
        target_values(op, value, classes, ignore)


def target_values(op: str, value: Tensor, classes: int, ignore: int) -> None:
    """Refuse a target with a value that is no class, not unlabelled and not to be ignored.

    Looks on the CPU, and under :func:`checked_targets` on every device that has values.
    """
    if torch.compiler.is_compiling() or value.is_meta:
        return
    if value.device.type != "cpu" and not _checked.get():
        return
    labels = value.long()  # a uint8 can't be compared with what it can't hold
    wrong = labels[((labels < 0) | (labels > classes)) & (labels != ignore)]
    if wrong.numel():
        raise ValueError(
            f"{op}: target must hold 0..{classes - 1} (a class), {classes} (unlabelled) or "
            f"{ignore} (ignore), got {int(wrong[0])}"
        )


def call(operator: Callable[..., Any], *arguments: object) -> Any:
    """Call an operator whose kernel looks at a target's values.

    torch makes a RuntimeError of whatever a C++ kernel throws; here it is :func:`target_values`'s
    ValueError again.
    """
    try:
        return operator(*arguments)
    except RuntimeError as error:
        refused = re.search(r"\w+: target must hold .*, got -?\d+", str(error))
        if refused is None:
            raise
        raise ValueError(refused[0]) from None


@contextmanager
def checked_targets() -> Iterator[None]:
    """Look at every target's values before a loss or pseudo labels are computed, on any device.

    On the CPU that is always done. On a GPU looking waits for the device, so without this a wrong
    value meets a device assertion in the kernel, as in torch's cross_entropy: an error that comes
    late, names no value and leaves the process without a working device. Under this it is a
    ValueError that names the value::

        with blpseg_ops.checked_targets():
            loss = blpseg_ops.blp_loss(seg_logits, annotation_logits, target)

    Serves as a decorator, ``@blpseg_ops.checked_targets()``, as well. Holds for the thread (or
    asyncio task) that enters it; compiled graphs and CUDA graphs take no notice of it.

    Examples:
        >>> with blpseg_ops.checked_targets():  # doctest: +ELLIPSIS
        ...     blpseg_ops.annotation_loss(torch.zeros(1, 3, 1, 1), torch.full((1, 2, 2), 7))
        Traceback (most recent call last):
        ValueError: annotation_loss: target must hold 0..1 (a class), 2 (unlabelled) or ..., got 7
    """
    before = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(before)


def class_present(op: str, value: Tensor, seg_logits: Tensor) -> None:
    """Refuse what is not a bool for every image and class."""
    tensor(op, "class_present", value)
    if value.dtype != torch.bool:
        raise TypeError(f"{op}: class_present must be torch.bool, got {value.dtype}")
    if value.shape != seg_logits.shape[:2]:
        raise ValueError(
            f"{op}: class_present must have shape [N, K] = {list(seg_logits.shape[:2])}, "
            f"got {list(value.shape)}"
        )
    same_device(op, "class_present", value, "seg_logits", seg_logits)


def threshold(op: str, value: float) -> None:
    """Refuse what is not a probability."""
    if not 0 <= value <= 1:
        raise ValueError(f"{op}: threshold must be in 0..1, got {value}")


def positive(op: str, name: str, value: float) -> None:
    """Refuse a number that is not > 0 (or not finite)."""
    if not 0 < value < float("inf"):
        raise ValueError(f"{op}: {name} must be a finite number > 0, got {value}")


def not_negative(op: str, name: str, value: float) -> None:
    """Refuse a number that is not >= 0 (or not finite)."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{op}: {name} must be a finite number >= 0, got {value}")


def radius(op: str, value: int | None) -> None:
    """Refuse what is neither None nor a whole number >= 0."""
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"{op}: radius must be None or an int >= 0, got {value!r}")


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
