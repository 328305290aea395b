"""DDP and FSDP2: two processes have the gradients and the step of one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist

from ._common import run_program

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()),
    reason="no torch.distributed, or no gloo",
)

PROGRAM = """
import os, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from blpseg_ops import BLPLoss, LocalAggregation, annotation_loss

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads = nn.ModuleList(nn.Conv2d(3, k, 4, stride=4) for k in (3, 4))
        self.aggregate = LocalAggregation(dim=8, sigma=1.5, eps=1e-3)
        self.loss = BLPLoss()
    def forward(self, images, target):
        seg, annotation = (head(images) for head in self.heads)
        seg = self.aggregate(images, seg)
        # A mean over images: the mean of two processes' gradients is the gradient of one process.
        return sum(
            self.loss(s, a.detach(), t) + annotation_loss(a, t)
            for s, a, t in zip(seg.split(1), annotation.split(1), target.split(1))
        ) / len(images)

def step(model, images, target):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(images, target).backward()
    grads = [p.grad for p in model.parameters()]
    grads = [g.full_tensor() if isinstance(g, DTensor) else g.clone() for g in grads]
    optimizer.step()
    loss = model(images, target)  # with the new parameters
    return loss.detach(), grads

rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=os.environ["MEETING"], rank=rank, world_size=2)
rng = torch.Generator().manual_seed(0)
images = torch.randn(4, 3, 20, 24, generator=rng)
target = torch.randint(0, 4, (4, 20, 24), generator=rng)
torch.manual_seed(1)
model = Model()
expected_loss, expected = step(model, images, target)
torch.manual_seed(1)
model = Model()
if os.environ["HOW"] == "DDP":
    model = DistributedDataParallel(model)
else:
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.aggregate, mesh=mesh)
    fully_shard(model, mesh=mesh)
own = slice(2 * rank, 2 * rank + 2)
loss, grads = step(model, images[own], target[own])
dist.all_reduce(loss)
torch.testing.assert_close(loss / 2, expected_loss)
assert len(grads) == len(expected) == 10
for grad, wanted in zip(grads, expected):
    assert wanted.abs().max() > 0
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-6)
dist.destroy_process_group()
print("done", flush=True)
# FSDP2 keeps the group, so gloo's threads live on. A thread that frees a tensor while Python shuts
# down aborts the process (with torch 2.13, a program of collectives alone: 33 of 60 runs).
os._exit(0)
"""


@pytest.mark.parametrize("how", ["DDP", "FSDP2"])
def test_two_processes_are_one(how: str, tmp_path: Path) -> None:
    meeting = f"file://{tmp_path / 'meeting'}"

    def run(rank: int) -> None:
        done = run_program(
            PROGRAM, timeout=120, RANK=str(rank), MEETING=meeting, HOW=how, OMP_NUM_THREADS="1"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith("done\n")  # older gloo prints its connections first

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, range(2)))
