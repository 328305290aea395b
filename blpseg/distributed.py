"""What makes training on several processes the same as on one, for the same global batch.

A batch of N images is split into equal shares, in the order of its images. The gradients of the
shares' losses are averaged, so everything that a process computes over its images alone has to be
put right: batch statistics, dropout's masks and the weights that normalise the annotation loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.data import Sampler


class ShareOfBatches(Sampler[list[int]]):
    """Positions of this process's images, batch by batch.

    Args:
        batches: The batches to go through, e.g. those that an interrupted run has left.
        batch_size: Images of a batch over all processes, a multiple of their number.
        rank: Which share this process takes.
        processes: Number of processes.
    """

    def __init__(self, batches: range, batch_size: int, rank: int, processes: int) -> None:
        self._batches = batches
        self._batch_size = batch_size
        self._share = batch_size // processes
        self._start = rank * self._share

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            start = batch * self._batch_size + self._start
            yield list(range(start, start + self._share))


def weigh_share(
    loss: Tensor,  # []
    target: Tensor,  # [n, H, W]
    num_classes: int,
    unlabeled_weight: float,
    ignore_index: int,
) -> Tensor:  # []
    """Scale a share's annotation loss so that the mean over processes is the whole batch's.

    The loss is normalised by the sum of its pixels' weights. Averaged plainly, a share with few
    scribbles would count as much as one with many.

    Args:
        loss: The share's annotation loss.
        target: The share's labels.
        num_classes: K.
        unlabeled_weight: Weight of the pixels of value K.
        ignore_index: Value of the pixels without a weight.
    """
    if not dist.is_initialized():
        return loss
    labelled = ((target < num_classes) & (target != ignore_index)).sum()
    own = labelled + unlabeled_weight * (target == num_classes).sum()
    whole = own.clone()
    dist.all_reduce(whole)
    return loss * (own * dist.get_world_size() / whole.where(whole > 0, 1))


def synchronise(model: nn.Module, state: PartialState) -> nn.Module:
    """Let batch norm and dropout act on the whole batch, where there are several processes.

    torch's SyncBatchNorm takes no tensors on the CPU; `BatchNormOnCpu` stands in for it there.

    Args:
        model: Its layers are replaced; names, parameters and buffers stay.
        state: Number and device of the processes.
    """
    if state.num_processes == 1:
        return model
    if state.device.type == "cpu":
        model = _replace(model, nn.BatchNorm2d, BatchNormOnCpu)
    else:
        model = cast(nn.Module, convert_sync_batchnorm(model))
    return _replace(model, nn.Dropout2d, lambda dropout: DropoutOfBatch(dropout.p))


def leave_group() -> None:
    """Leave the group of processes, where there is one, at a program's end.

    gloo's threads end with the last reference to their group. One that lets go of a tensor while
    Python shuts down aborts the process: exit code 134 after a run that went well.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


class BatchNormOnCpu(nn.Module):
    """Batch norm over the images of all processes, each with the same number of pixels.

    Source: as torch.nn.SyncBatchNorm, from its documentation, in torch's differentiable operations.

    Args:
        norm: The layer to replace; its parameters and buffers are taken over, and so is the
            activation that timm's layers carry.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.eps, self.momentum = norm.eps, norm.momentum
        self.drop, self.act = getattr(norm, "drop", None), getattr(norm, "act", None)

    def forward(
        self,
        x: Tensor,  # [n, C, h, w]
    ) -> Tensor:  # [n, C, h, w]
        """Normalise by the whole batch's statistics; in evaluation by the running ones."""
        if self.training:
            count = x.numel() // x.shape[1] * dist.get_world_size()
            mean = _AllReduce.apply(x.sum((0, 2, 3))) / count
            off = x - mean[:, None, None]
            variance = _AllReduce.apply(off.square().sum((0, 2, 3))) / count
            self._track(mean.detach(), variance.detach(), count)
            factor = self.weight * torch.rsqrt(variance + self.eps)
            y = off * factor[:, None, None] + self.bias[:, None, None]
        else:
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        for then in (self.drop, self.act):
            y = y if then is None else then(y)
        return y

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / max(count - 1, 1), share)


class DropoutOfBatch(nn.Dropout2d):
    """Dropout2d with the masks that one process would draw for the whole batch.

    Every process draws them all, from the same random state, and uses its images' own.
    """

    def forward(
        self,
        x: Tensor,  # [n, C, h, w]
    ) -> Tensor:  # [n, C, h, w]
        """Drop channels, in training."""
        if not self.training or self.p == 0:
            return x
        n, channels = x.shape[:2]
        masks = x.new_empty(dist.get_world_size() * n, channels, 1, 1)
        masks = masks.bernoulli_(1 - self.p).div_(1 - self.p)
        return x * masks[dist.get_rank() * n :][:n]


class _AllReduce(Function):
    """The sum over processes; what flows back is the sum of the processes' gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


def _replace(
    module: nn.Module, old: type[nn.Module], new: Callable[[nn.Module], nn.Module]
) -> nn.Module:
    """Make `new` of every `old` layer."""
    if isinstance(module, old):
        return new(module).train(module.training)
    for name, child in module.named_children():
        module.add_module(name, _replace(child, old, new))
    return module
