"""What every op tells torch about itself, in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from blpseg_ops._schemas import LIBRARY

_fallbacks: dict[str, Callable[..., Any]] = {}


def register(
    op: str,
    *,
    fallback: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    autocast_to_float32: bool = False,
) -> None:
    """Attach the pieces of ``blpseg::<op>`` that are the same whatever the device.

    Args:
        op: Name of an operator defined in ``_schemas.py``.
        fallback: The reference, used on every device for which no kernel is registered.
        fake: Shapes and dtypes of the results, for torch.compile and torch.export.
        backward: Gradient formula, as torch.library.register_autograd takes it.
        setup_context: What to save for it.
        autocast_to_float32: Under autocast, widen floating-point inputs (but float64) to float32.
    """
    name = f"blpseg::{op}"
    _fallbacks[op] = fallback
    LIBRARY.impl(op, fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    if op.endswith("_backward"):
        torch.library.register_autograd(name, _refuse_second_derivative(op), lib=LIBRARY)
    elif backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=LIBRARY)
    if autocast_to_float32:
        for device_type in ("cpu", "cuda"):
            torch.library.register_autocast(name, device_type, torch.float32, lib=LIBRARY)


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """The operators in terms of torch's own, for graphs that go where ours are unknown.

    An exported program keeps ``torch.ops.blpseg.*`` as they are; this table takes them apart, for
    instance for ONNX::

        program = torch.export.export(model, (images,))
        program = program.run_decompositions(blpseg_ops.decompositions())
        torch.onnx.export(program, dynamo=True).save("model.onnx")

    Batch, height and width may be dynamic. ``lam`` becomes matrix products over all pairs of pixels
    (of a window's blocks, with a radius), 2^24 at a time where height and width are static, all at
    once where they are dynamic.

    Returns:
        From each operator to a function of the same arguments in plain PyTorch.
    """
    return {getattr(torch.ops.blpseg, op).default: fallback for op, fallback in _fallbacks.items()}


def _refuse_second_derivative(op: str) -> Callable[..., Any]:
    """Make the gradient of a gradient an error; torch's default would be a warning and zeros."""
    name = op.removesuffix("_backward")

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{name} can be differentiated once; for higher derivatives call it with "
            f"backend='reference', which torch's autograd differentiates"
        )

    return backward
