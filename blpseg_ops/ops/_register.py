"""What every op tells torch about itself, and how its public function calls it.

``torch.library.register_autograd`` would do but for two things: torch refuses its gradients under
``torch.func``, and a call of it costs as much as a small kernel's work. Here an op is a
``torch.autograd.Function``, which the dispatcher enters where a gradient is wanted, and the public
functions where ``torch.func`` transforms them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from blpseg_ops._schemas import LIBRARY
from blpseg_ops.ops._vmap import Rule

_fallbacks: dict[str, Callable[..., Any]] = {}


def register(
    op: str,
    *,
    fallback: Callable[..., Any],
    fake: Callable[..., Any],
    vmap: Rule,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
    autocast_to_float32: bool = False,
) -> Callable[..., Any]:
    """Attach the pieces of ``blpseg::<op>`` that are the same whatever the device.

    Args:
        op: Name of an operator defined in ``_schemas.py``.
        fallback: The reference, used on every device for which no kernel is registered.
        fake: Shapes, dtypes and strides of the results, for torch.compile and torch.export.
        vmap: What torch.vmap makes of the operator.
        backward: Gradient formula, as in torch.autograd.Function. Without one, results have no
            gradient, and those of a backward are errors to differentiate.
        setup_context: What to save for it, likewise.
        autocast_to_float32: Under autocast, widen floating-point inputs (but float64) to float32.

    Returns:
        The operator, to be called instead of ``torch.ops.blpseg.<op>``.
    """
    name = f"blpseg::{op}"
    operator = getattr(torch.ops.blpseg, op).default
    if op.endswith("_backward"):
        backward = _refuse_second_derivative(op)
    differentiable, transformable = _make_functions(op, operator, vmap, backward, setup_context)

    _fallbacks[op] = fallback
    LIBRARY.impl(op, fallback, "CompositeExplicitAutograd")
    torch.library.register_fake(name, fake, lib=LIBRARY)
    if backward is not None:
        LIBRARY.impl(op, _make_autograd_kernel(operator, differentiable), "Autograd")
    if autocast_to_float32:
        for device_type in ("cpu", "cuda"):
            torch.library.register_autocast(name, device_type, torch.float32, lib=LIBRARY)

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        if torch._C._are_functorch_transforms_active():
            return transformable.apply(*(_widened(arguments) if autocast_to_float32 else arguments))
        if _wants_gradient(arguments):
            return operator(*arguments)
        return _below_autograd(operator, arguments)  # 6 us faster than by way of Python's kernel

    call.__name__ = op
    return call


def _make_functions(
    op: str,
    operator: Callable[..., Any],
    vmap: Rule,
    backward: Callable[..., Any] | None,
    setup_context: Callable[..., None] | None,
) -> tuple[type[Function], type[Function]]:
    """The operator with its derivatives, as torch.autograd takes it, and as torch.func does.

    The second would do for both, were it not for 18 us that torch takes to call a setup_context.
    """
    name = op.removesuffix("_backward")

    def save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if setup_context is not None:
            setup_context(ctx, inputs, output)
        elif backward is None:
            ctx.mark_non_differentiable(*(output if isinstance(output, tuple) else (output,)))

    class Differentiable(Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = _below_autograd(operator, arguments)
            save(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            assert backward is not None, f"{name} has no gradient"
            return backward(ctx, *grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            raise RuntimeError(
                f"{name} has no forward-mode derivative (jvp, jacfwd, hessian); call it with "
                f"backend='reference', which has"
            )

    class Transformable(Differentiable):
        @staticmethod
        def forward(*arguments: Any) -> Any:
            return _below_autograd(operator, arguments)

        setup_context = staticmethod(save)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
            results = vmap(Transformable.apply, info.batch_size, in_dims, arguments)
            return results, 0 if isinstance(results, Tensor) else (0,) * len(results)

    Differentiable.__name__ = Transformable.__name__ = op
    return Differentiable, Transformable


def _make_autograd_kernel(
    operator: Callable[..., Any], function: type[Function]
) -> Callable[..., Any]:
    def kernel(*arguments: Any) -> Any:
        if _wants_gradient(arguments):
            return function.apply(*arguments)
        return _below_autograd(operator, arguments)

    return kernel


def _below_autograd(operator: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _wants_gradient(arguments: tuple[Any, ...]) -> bool:
    """Whether results are to be differentiated, in either mode."""
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)


def _widened(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What autocast makes of arguments; the dispatcher gets to it after torch.func's transforms."""
    return tuple(
        argument.float()
        if isinstance(argument, Tensor)
        and argument.is_floating_point()
        and argument.dtype != torch.float64
        and torch.is_autocast_enabled(argument.device.type)
        else argument
        for argument in arguments
    )


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

    Examples:
        >>> torch.ops.blpseg.lam.default in blpseg_ops.decompositions()
        True
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
