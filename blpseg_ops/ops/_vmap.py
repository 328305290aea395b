"""How ``torch.vmap`` maps an op: in one call over a larger batch, or in one call per entry.

A rule is called as ``rule(op, length, axes, arguments)``: ``length`` is the size of the mapped
dimension, and ``axes[i]`` is its position in ``arguments[i]``, or None if that argument is not
mapped. The mapped dimension of the results is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

VmapRule = Callable[[Callable[..., Any], int, Sequence[Any], Sequence[Any]], Any]


def vmap_by_batching(
    op: Callable[..., Any], length: int, axes: Sequence[Any], arguments: Sequence[Any]
) -> Any:
    """Merge the mapped dimension into the batch; for ops whose images are independent."""
    merged, batch = [], 0
    for argument, axis in zip(arguments, axes, strict=True):
        if isinstance(argument, Tensor):
            entries = argument.expand(length, *argument.shape)
            if axis is not None:
                entries = argument.movedim(axis, 0)
            batch = entries.shape[1]
            argument = entries.flatten(0, 1)
        merged.append(argument)
    results = op(*merged)
    if isinstance(results, Tensor):
        return results.unflatten(0, (length, batch))
    return tuple(result.unflatten(0, (length, batch)) for result in results)


def vmap_by_looping(
    op: Callable[..., Any], length: int, axes: Sequence[Any], arguments: Sequence[Any]
) -> Any:
    """Call the op once per entry; for ops that reduce the batch to one number."""
    if length == 0:
        raise ValueError("vmap: a loss needs at least one entry to map over, got 0")

    def entry(i: int) -> Any:
        return op(
            *(
                argument.select(axis, i) if isinstance(axis, int) else argument
                for argument, axis in zip(arguments, axes, strict=True)
            )
        )

    results = [entry(i) for i in range(length)]
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    return tuple(map(torch.stack, zip(*results, strict=True)))
