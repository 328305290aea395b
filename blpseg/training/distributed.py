"""Make several processes compute what one process would compute for the same global batch.

A batch of N images is split into equal parts, in the order of its images; each process takes one.
The gradients of the parts' losses are averaged. Three values depend on the whole batch and are
corrected here: the batch statistics, the dropout masks, and the sum of weights that normalizes the
annotation loss.
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


class PartOfBatches(Sampler[list[int]]):
    """List the stream positions of this process's images, batch by batch.

    Args:
        batches: Indices of the batches, e.g. the remaining ones of a resumed run.
        batch_size: Images per batch over all processes; a multiple of `processes`.
        rank: Index of this process.
        processes: Number of processes.
    """

    def __init__(self, batches: range, batch_size: int, rank: int, processes: int) -> None:
        self._batches = batches
        self._batch_size = batch_size
        self._part = batch_size // processes
        self._start = rank * self._part

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            start = batch * self._batch_size + self._start
            yield list(range(start, start + self._part))


def rescale_annotation_loss(
    loss: Tensor,  # []
    target: Tensor,  # [n, H, W]
    num_classes: int,
    unlabeled_weight: float,
    ignore_index: int,
) -> Tensor:  # []
    """Scale a part's annotation loss so that the mean over processes is the whole batch's loss.

    The loss of a part is divided by the sum of its pixels' weights. A plain mean would count a part
    with few scribbles as much as one with many. The factor is

        sum of weights of this part * number of processes / sum of weights of all parts.

    Args:
        loss: Annotation loss of this process's part.
        target: Labels of this process's part.
        num_classes: K.
        unlabeled_weight: Weight of the pixels of value K; labeled pixels have weight 1.
        ignore_index: Value of the pixels of weight 0.
    """
    if not dist.is_initialized():
        return loss
    labeled = ((target < num_classes) & (target != ignore_index)).sum()
    own = labeled + unlabeled_weight * (target == num_classes).sum()
    whole = own.clone()
    dist.all_reduce(whole)
    return loss * (own * dist.get_world_size() / whole.where(whole > 0, 1))


def synchronize(model: nn.Module, state: PartialState) -> nn.Module:
    """Replace batch norm and dropout by layers that act on the batch of all processes.

    torch's SyncBatchNorm accepts no CPU tensors; on the CPU `BatchNormOnCpu` replaces it.

    Args:
        model: Its layers are replaced; names, parameters and buffers stay.
        state: Number and device of the processes.

    Returns:
        The model; unchanged if there is one process.
    """
    if state.num_processes == 1:
        return model
    if state.device.type == "cpu":
        model = _replace(model, nn.BatchNorm2d, BatchNormOnCpu)
    else:
        model = cast(nn.Module, convert_sync_batchnorm(model))
    return _replace(model, nn.Dropout2d, lambda dropout: DropoutOfBatch(dropout.p))


def leave_group() -> None:
    """Destroy the process group, if there is one, before the program ends.

    Otherwise a gloo thread may free a tensor while Python shuts down, which aborts the process with
    exit code 134 after a successful run.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


class BatchNormOnCpu(nn.Module):
    """Normalize over the images of all processes, which have the same number of pixels each.

    Computes what torch.nn.SyncBatchNorm documents, with differentiable torch operations.

    Args:
        norm: The layer to replace. This layer takes over its parameters and buffers, and the
            dropout and activation that timm's batch norm layers contain.
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
        """Normalize by the whole batch's statistics in training, by the running ones otherwise."""
        if self.training:
            count = x.numel() // x.shape[1] * dist.get_world_size()
            mean = _AllReduce.apply(x.sum((0, 2, 3))) / count
            centered = x - mean[:, None, None]
            variance = _AllReduce.apply(centered.square().sum((0, 2, 3))) / count
            self._track(mean.detach(), variance.detach(), count)
            factor = self.weight * torch.rsqrt(variance + self.eps)
            y = centered * factor[:, None, None] + self.bias[:, None, None]
        else:
            y = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        for layer in (self.drop, self.act):
            y = y if layer is None else layer(y)
        return y

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        self.num_batches_tracked += 1
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * count / max(count - 1, 1), momentum)


class DropoutOfBatch(nn.Dropout2d):
    """Dropout2d with the masks that one process would draw for the whole batch.

    Every process draws the masks of all images from the same random state and uses its part.
    """

    def forward(
        self,
        x: Tensor,  # [n, C, h, w]
    ) -> Tensor:  # [n, C, h, w]
        """Drop channels in training."""
        if not self.training or self.p == 0:
            return x
        n, channels = x.shape[:2]
        masks = x.new_empty(dist.get_world_size() * n, channels, 1, 1)
        masks = masks.bernoulli_(1 - self.p).div_(1 - self.p)
        return x * masks[dist.get_rank() * n :][:n]


class _AllReduce(Function):
    """Sum over processes; the gradient is the sum of the processes' gradients."""

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
    """Replace every layer of type `old` by `new(layer)`."""
    if isinstance(module, old):
        return new(module).train(module.training)
    for name, child in module.named_children():
        module.add_module(name, _replace(child, old, new))
    return module
