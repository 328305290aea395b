"""Ops in threads and forked processes; pickles, copies and state dicts of modules."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import blpseg_ops
from blpseg_ops import BLPLoss, LocalAggregation

from ._common import randn, run_program

SIZES = [(9, 11), (26, 33), (1, 1), (17, 40)]


def _step(i: int) -> tuple[Tensor, ...]:
    """Run all ops and their gradients on inputs of the i-th size."""
    low = SIZES[i % len(SIZES)]
    high = (4 * low[0] - 1, 4 * low[1] + 2)
    f, v, a = (randn(2, c, *low, seed=c).float().requires_grad_() for c in (16, 3, 4))
    target = torch.randint(0, 4, (2, *high), generator=torch.Generator().manual_seed(i))
    present = torch.ones(2, 3, dtype=torch.bool)
    seg = blpseg_ops.lam(f, v, 2.0, eps=1e-3)
    blp, annotated, labels = blpseg_ops.blp_objective(
        seg, a, target, class_present=present, threshold=0.4
    )
    single = blpseg_ops.blp_loss(seg, a, target) + blpseg_ops.annotation_loss(a, target)
    grads = torch.autograd.grad(blp + annotated + single, (f, v, a))
    pseudo = blpseg_ops.pseudo_labels(seg, target, present)
    return seg, blp, annotated, labels, *grads, pseudo, blpseg_ops.upsample_argmax(seg, high)


def _assert_equal(results: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for result, wanted in zip(results, expected, strict=True):
        assert torch.equal(result, wanted)


@pytest.mark.parametrize("threads_of_a_call", [1, 2])
def test_calls_from_many_threads_are_serial_calls(
    restore_threads: None, threads_of_a_call: int
) -> None:
    torch.set_num_threads(threads_of_a_call)
    expected = list(map(_step, range(len(SIZES))))
    together = threading.Barrier(4)

    def work(i: int) -> tuple[Tensor, ...]:
        together.wait()  # else a thread could finish before the next starts
        return _step(i)

    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for i, results in enumerate(pool.map(work, range(4))):
                _assert_equal(results, expected[i])


FORKED = """
import torch, blpseg_ops
from torch.utils.data import DataLoader, Dataset
from tests.ops.test_sharing import _step
torch.set_num_threads(2)
expected = list(map(_step, range(4)))  # start the parent's threads before the fork

class Steps(Dataset):
    def __len__(self):
        return 8
    def __getitem__(self, i):
        assert torch.get_num_threads() == 1  # with more, any torch op hangs after a fork
        return [x.detach() for x in _step(i % 4)]

for epoch in range(2):
    loader = DataLoader(
        Steps(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=30
    )
    for i, results in enumerate(loader):
        for result, wanted in zip(results, expected[i % 4], strict=True):
            assert torch.equal(result, wanted), i
        list(map(_step, range(1)))  # the parent calls ops meanwhile
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs fork")
def test_forked_workers_call_ops_after_their_parent() -> None:
    done = run_program(FORKED, timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"


def _saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "deepcopy": copy.deepcopy,
    "torch.save": _saved_and_loaded,
}
each_copy = pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)


@each_copy
def test_copies_of_local_aggregation(copied: Callable[[nn.Module], nn.Module]) -> None:
    module = LocalAggregation(dim=8, sigma=2.5, eps=1e-3, scale=0.5, radius=2)
    images, logits = randn(2, 3, 15, 22).float(), randn(2, 3, 4, 6).float()
    module(images, logits).sum().backward()  # after use, with gradients
    twin = copied(module)
    assert repr(twin) == repr(module)
    assert torch.equal(twin(images, logits), module(images, logits))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin(images, logits), module(images, logits))


@each_copy
def test_copies_of_blp_loss(copied: Callable[[nn.Module], nn.Module]) -> None:
    module = BLPLoss(gamma=1.5, ignore_index=200)
    seg, annotation = randn(1, 3, 4, 5), randn(1, 4, 4, 5)
    target = torch.full((1, 9, 9), 200)
    target[0, 3:6] = 1
    twin = copied(module)
    assert repr(twin) == repr(module)
    assert torch.equal(twin(seg, annotation, target), module(seg, annotation, target))


def test_state_dicts_keep_their_names_and_shapes() -> None:
    """Old checkpoints have these names and shapes; a new buffer would make loading fail."""
    module = LocalAggregation(dim=8, patch=4, in_channels=3, sigma=2.5, eps=1e-7, radius=2)
    shapes = {name: tuple(x.shape) for name, x in module.state_dict().items()}
    assert shapes == {
        "proj.weight": (8, 3, 4, 4),
        "proj.bias": (8,),
        "norm.weight": (8,),
        "norm.bias": (8,),
        "conv.weight": (8, 8, 1, 1),
        "conv.bias": (8,),
    }
    assert BLPLoss().state_dict() == {}
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = LocalAggregation(dim=8, sigma=2.5, eps=1e-7, radius=2)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    images, logits = randn(2, 3, 15, 22).float(), randn(2, 3, 4, 6).float()
    assert torch.equal(other(images, logits), module(images, logits))
