"""Triton's interpreter for tests: mended, faster, and with the dot products of a chip.

``prepare()`` comes once, before the first kernel runs. Then every tl.dot has the same bits on every
processor: products are exact and rounded once, or, within ``emulate(family)``, as that family's
tensor cores round them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle

from blpseg_ops.triton import lam_config

from . import _tensor_cores
from ._tensor_cores import Array, TensorCores

_cores: TensorCores | None = None
_core_is_patched = False


@cache
def prepare() -> None:
    """Patch the interpreter for the whole process, once."""
    InterpretedFunction.__call__ = _call_device_function
    InterpreterBuilder.create_dot = _dot
    InterpreterBuilder.create_exp = _exp
    InterpreterBuilder.create_exp2 = _exp2
    InterpreterBuilder.cast_impl = _cast
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8):
        patch_tensor = interpreter._patch_lang_tensor

        def with_index_of_one_number(tensor: Any, *scope: Any) -> None:
            patch_tensor(tensor, *scope)
            tensor.__index__ = lambda self: self.handle.data.item()

        interpreter._patch_lang_tensor = with_index_of_one_number


@contextmanager
def emulate(family: str) -> Iterator[None]:
    """Launch a family's configurations, and round its dot products and exponentials as it does."""
    global _cores
    # int32 overflow is looked for in the other tests: the check takes a quarter of the time.
    unchecked = interpreter.InterpreterOptions(sanitize_overflow=False)
    with (
        patch.object(interpreter.interpreter_builder, "options", unchecked),
        patch.object(lam_config, "family_of_device", lambda device: family),
    ):
        _cores = _tensor_cores.OF_FAMILY[family]
        try:
            yield
        finally:
            _cores = None


def _call_device_function(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a helper of a kernel.

    A launch patches triton.language, and Triton patches again at every such call, which takes a
    third of the interpreter's time. What a launch leaves out is the module that Triton's own
    helpers see, triton.language.core; nothing restores that one.
    """
    global _core_is_patched
    if not _core_is_patched and any(x is tl.core for x in self.fn.__globals__.values()):
        interpreter._patch_lang(self.fn)
        _core_is_patched = True
    return self.rewrite()(*args, **kwargs)


def _dot(
    builder: Any, a: Any, b: Any, accumulator: Any, input_precision: Any, max_num_imprecise_acc: int
) -> Any:
    precision = input_precision.name.lower() if a.dtype.scalar == tl.float32 else "half"
    args = _as_float32(a), _as_float32(b), accumulator.data
    product = _tensor_cores.precise_dot(*args) if _cores is None else _cores.dot(*args, precision)
    return TensorHandle(product, accumulator.dtype.scalar)


def _exp2(builder: Any, x: Any) -> Any:
    if _cores is None:
        return builder.unary_op(x, np.exp2)
    return TensorHandle(_tensor_cores.approximate_exp2(x.data), x.dtype.scalar)


def _exp(builder: Any, x: Any) -> Any:
    if _cores is None:
        return builder.unary_op(x, np.exp)
    with np.errstate(invalid="ignore", over="ignore"):  # as Triton lowers it
        exponent = x.data * np.float32(1.44269504)
    return TensorHandle(_tensor_cores.approximate_exp2(exponent), x.dtype.scalar)


_interpreter_cast = InterpreterBuilder.cast_impl


def _cast(builder: Any, x: Any, dtype: Any) -> Any:
    """Round float32 to the nearest bfloat16; the interpreter truncates."""
    if x.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
        return TensorHandle(_to_bfloat16(x.data), dtype.scalar)
    if x.dtype.scalar == tl.bfloat16 and dtype.scalar == tl.float32:
        return TensorHandle(_as_float32(x), dtype.scalar)
    return _interpreter_cast(builder, x, dtype)


def _as_float32(x: Any) -> Array:
    if x.dtype.scalar == tl.bfloat16:  # stored as uint16
        return (x.data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return x.data.astype(np.float32)


def _to_bfloat16(x: Array) -> np.ndarray[Any, Any]:
    bits = np.ascontiguousarray(x).view(np.uint32)
    to_nearest_even = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    rounded = np.where(np.isnan(x), bits | np.uint32(0x400000), bits + to_nearest_even)
    return (rounded >> np.uint32(16)).astype(np.uint16)
