"""What ``torch.vmap`` makes of an op: one call over more images, or a call an entry.

A rule is called with the op, the length of the mapped axis, which axis of each argument that is
(None: the argument is the same for all) and the arguments. Results have the mapped axis in front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Callable[[Callable[..., Any], int, Sequence[Any], Sequence[Any]], Any]


def fold(op: Callable[..., Any], length: int, axes: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """One call: for ops of tensors [N, ...] whose images have nothing to do with each other."""
    folded, images = [], 0
    for argument, axis in zip(arguments, axes, strict=True):
        if isinstance(argument, Tensor):
            entries = argument.expand(length, *argument.shape)
            if axis is not None:
                entries = argument.movedim(axis, 0)
            images = entries.shape[1]
            argument = entries.flatten(0, 1)
        folded.append(argument)
    return _each(lambda result: result.unflatten(0, (length, images)), op(*folded))


def loop(op: Callable[..., Any], length: int, axes: Sequence[Any], arguments: Sequence[Any]) -> Any:
    """A call an entry: for ops that make one number of all their images."""
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


def _each(change: Callable[[Tensor], Tensor], results: Any) -> Any:
    return change(results) if isinstance(results, Tensor) else tuple(map(change, results))
