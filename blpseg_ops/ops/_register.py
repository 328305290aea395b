"""Registration: what an op tells torch about itself, the same for every device.

A differentiable op is one ``torch.autograd.Function`` around its operator
``torch.ops.blpseg.<op>``. The public function calls the Function, since only a Function can be
differentiated under ``torch.func``. The operator itself, which compiled and exported graphs hold,
gets the same gradient through ``torch.library.register_autograd``. An op without a gradient is its
operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from blpseg_ops._schemas import LIBRARY
from blpseg_ops.ops._vmap import VmapRule

_fallbacks: dict[str, Callable[..., Any]] = {}


def register_op(
    op: str,
    *,
    fallback: Callable[..., Any],
    fake: Callable[..., Any],
    vmap: VmapRule,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    autocast_to_float32: bool = False,
) -> Callable[..., Any]:
    """Attach to ``blpseg::<op>`` everything that does not depend on the device.

    Args:
        op: Name of an operator defined in ``_schemas.py``.
        fallback: Plain PyTorch, for every device without a kernel.
        fake: Shapes, dtypes and strides of the results, for torch.compile and torch.export.
        vmap: How torch.vmap maps the operator; see ``_vmap.py``.
        backward: Gradient formula, as in torch.autograd.Function. None if there is no gradient.
        setup_context: Saves what backward needs, as in torch.autograd.Function.
        autocast_to_float32: Under autocast, widen floating-point inputs other than float64.

    Returns:
        The function to call instead of ``torch.ops.blpseg.<op>``.
    """
    name = f"blpseg::{op}"
    operator = getattr(torch.ops.blpseg, op).default
    if op.endswith("_backward"):
        backward = _make_double_backward_error(op)

    _fallbacks[op] = fallback
    LIBRARY.impl(op, fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=LIBRARY)
    if autocast_to_float32:
        for device_type in ("cpu", "cuda"):
            torch.library.register_autocast(name, device_type, torch.float32, lib=LIBRARY)

    if backward is None:
        torch.library.register_vmap(name, _as_torchs_rule(operator, vmap), lib=LIBRARY)
        return operator  # type: ignore[no-any-return]
    function = _make_function(op, operator, vmap, backward, setup_context)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        return function.apply(*(_widen(arguments) if autocast_to_float32 else arguments))

    call.__name__ = op
    return call


def _make_function(
    op: str,
    operator: Callable[..., Any],
    vmap_rule: VmapRule,
    backward_formula: Callable[..., Any],
    save: Callable[..., None] | None,
) -> type[Function]:
    """Return the operator as an autograd.Function that torch.func can transform."""
    name = op.removesuffix("_backward")

    class Op(Function):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return operator(*arguments)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if save is not None:
                save(ctx, inputs, output)

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            return backward_formula(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise RuntimeError(
                f"{name} has no forward-mode derivative (jvp, jacfwd, hessian); "
                f"backend='reference' supports it"
            )

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
            return _as_torchs_rule(Op.apply, vmap_rule)(info, in_dims, *arguments)

    Op.__name__ = op
    return Op


def _as_torchs_rule(op: Callable[..., Any], rule: VmapRule) -> Callable[..., tuple[Any, Any]]:
    """Return a rule of ``_vmap.py`` with the arguments and results that torch expects."""

    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        results = rule(op, info.batch_size, in_dims, arguments)
        return results, 0 if isinstance(results, Tensor) else (0,) * len(results)

    return vmap


def _make_double_backward_error(op: str) -> Callable[..., Any]:
    """Return a gradient of the gradient that raises. By default torch would warn and give zeros."""
    name = op.removesuffix("_backward")

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{name} can be differentiated once; backend='reference' supports higher derivatives"
        )

    return backward


def _widen(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the arguments as autocast casts them.

    It must happen before the Function: what the Function saves for backward has the dtypes of its
    own arguments.
    """
    return tuple(
        argument.float()
        if isinstance(argument, Tensor)
        and argument.is_floating_point()
        and argument.dtype != torch.float64
        and torch.amp.is_autocast_available(argument.device.type)
        and torch.is_autocast_enabled(argument.device.type)
        else argument
        for argument in arguments
    )


def decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """Return the operators in terms of torch's own, for graphs that run without blpseg_ops.

    An exported program holds ``torch.ops.blpseg.*``. This table replaces them by standard
    operators, for instance for ONNX::

        program = torch.export.export(model, (images,))
        program = program.run_decompositions(blpseg_ops.decompositions())
        torch.onnx.export(program, dynamo=True).save("model.onnx")

    Batch size, height and width may be dynamic. ``lam`` becomes matrix products over pixel pairs,
    2^24 pairs at a time if height and width are static, all at once if they are dynamic.

    Returns:
        A dict from operator to a function of the same arguments in plain PyTorch.

    Examples:
        >>> torch.ops.blpseg.lam.default in blpseg_ops.decompositions()
        True
    """
    return {getattr(torch.ops.blpseg, op).default: fallback for op, fallback in _fallbacks.items()}
