"""Checks of a target's values, and the context manager that extends them to GPUs.

Values can only be read where the data are. On the CPU each implementation checks them itself, in
the words of :func:`require_target_values`. Under :func:`checked_targets` the public functions check
them before dispatch, on any device.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

_checked: ContextVar[bool] = ContextVar("blpseg_checked_targets", default=False)


@contextmanager
def checked_targets() -> Iterator[None]:
    """Check the values of every target before a loss or pseudo labels are computed, on any device.

    On the CPU they are always checked. On a GPU a check must wait for the device, so by default
    there is none: a wrong value then fails a device assertion in the kernel, as in torch's
    cross_entropy. That error comes late, names no value, and the process loses the device. Under
    this context manager it is a ValueError that names the value::

        with blpseg_ops.checked_targets():
            loss = blpseg_ops.blp_loss(seg_logits, annotation_logits, target)

    It is also a decorator, ``@blpseg_ops.checked_targets()``. It applies to the thread (or asyncio
    task) that enters it. Compiled graphs and CUDA graphs ignore it.

    Examples:
        >>> with blpseg_ops.checked_targets():  # doctest: +ELLIPSIS
        ...     blpseg_ops.annotation_loss(torch.zeros(1, 3, 1, 1), torch.full((1, 2, 2), 7))
        Traceback (most recent call last):
        ValueError: annotation_loss: target must hold 0..1 (a class), 2 (unlabeled) or ..., got 7
    """
    before = _checked.set(True)
    try:
        yield
    finally:
        _checked.reset(before)


def require_target_values_if_checked(op: str, value: Tensor, classes: int, ignore: int) -> None:
    """Under :func:`checked_targets`, require valid values on any device; else do nothing."""
    if not torch.compiler.is_compiling() and _checked.get():
        require_target_values(op, value, classes, ignore)


def require_target_values(op: str, value: Tensor, classes: int, ignore: int) -> None:
    """Require that every value is a class, K (unlabeled) or ignore_index.

    Check targets on the CPU; under :func:`checked_targets` also on other devices, except meta.
    Do not check in compiled graphs.
    """
    if torch.compiler.is_compiling() or value.is_meta:
        return
    if value.device.type != "cpu" and not _checked.get():
        return
    labels = value.long()  # ignore_index may not fit the target's dtype
    wrong = labels[((labels < 0) | (labels > classes)) & (labels != ignore)]
    if wrong.numel():
        raise ValueError(
            f"{op}: target must hold 0..{classes - 1} (a class), {classes} (unlabeled) or "
            f"{ignore} (ignore), got {int(wrong[0])}"
        )


def call_with_target_errors(operator: Callable[..., Any], *arguments: object) -> Any:
    """Call an operator whose native kernel checks the target's values.

    torch turns every exception of a C++ kernel into a RuntimeError. Turn the one about the target
    back into the ValueError of :func:`require_target_values`.
    """
    try:
        return operator(*arguments)
    except RuntimeError as error:
        refused = re.search(r"\w+: target must hold .*, got -?\d+", str(error))
        if refused is None:
            raise
        raise ValueError(refused[0]) from None
