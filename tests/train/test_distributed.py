"""Training on two CPU processes equals training on one with the same global batch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import PartialState
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from blpseg.checkpoints import build_model, load_checkpoint
from blpseg.config import LogConfig, OptimConfig, TrainConfig
from blpseg.errors import UserError
from blpseg.training import train
from blpseg.training.distributed import PartOfBatches, rescale_annotation_loss, synchronize
from blpseg.training.run import _check_batch_divides

MakeConfig = Callable[..., TrainConfig]


def losses(run: Path) -> Tensor:  # [iterations, 2]
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = ("loss/blp", "loss/annotation")
    return torch.tensor([[point.value for point in events.Scalars(tag)] for tag in tags]).T


LAUNCHED = """
import sys
from pathlib import Path
from blpseg.cli import main
if __name__ == "__main__":
    code = main(["train", *sys.argv[1:]])
    threads = [thread.read_text() for thread in Path("/proc/self/task").glob("*/comm")]
    print("threads of gloo:", sum("gloo" in thread for thread in threads))
    sys.exit(code)
"""


def launch(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run `blpseg train` on two processes; each prints its number of gloo threads at the end."""
    program = folder / "launched.py"
    program.write_text(LAUNCHED)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run([*run, program, *arguments], capture_output=True, text=True)


def test_two_processes_get_the_losses_of_one(make_config: MakeConfig, tmp_path: Path) -> None:
    """Compare losses, averaged gradients and running statistics; self-training starts at the third.

    The learning rate is small, for AdamW makes full steps of gradients that are rounding alone.
    """
    optim = OptimConfig(1e-6, batch_size=4, iterations=5, self_training_from=2)
    config = make_config(optim=optim, log=LogConfig(scalars_every=1, validate_every=2))
    train(config, on_step=lambda step: None)

    file, both = tmp_path / "config.yaml", tmp_path / "both"
    device = "cpu" if torch.accelerator.is_available() else "auto"  # to join without being told
    settings = config.as_plain_data() | {"output": str(both), "device": device}
    file.write_text(yaml.safe_dump(settings))
    done = launch(tmp_path, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Trained in") == 1  # the main process reports
    assert done.stdout.count("threads of gloo: 0\n") == 2, done.stdout

    one, two = losses(config.output), losses(both)
    assert one.shape == two.shape == (5, 2)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=0)
    one, two = (load_checkpoint(run / "last.pt") for run in (config.output, both))
    for name, buffer in one["model"].items():
        if "running" in name:
            torch.testing.assert_close(two["model"][name], buffer, rtol=1e-4, atol=1e-5, msg=name)
    moments, others = ([s["exp_avg"] for s in c["optimizer"]["state"].values()] for c in (one, two))
    assert len(moments) == len(others)
    for moment, other in zip(moments, others, strict=True):
        assert (other - moment).abs().max() <= 1e-3 * moment.abs().max() + 1e-6


def test_shares_make_up_the_batches() -> None:
    shares = [list(PartOfBatches(range(2, 4), 6, rank, 3)) for rank in range(3)]
    assert shares == [[[12, 13], [18, 19]], [[14, 15], [20, 21]], [[16, 17], [22, 23]]]
    assert len(PartOfBatches(range(2, 4), 6, 0, 3)) == 2


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    _check_batch_divides(6, 3)
    with pytest.raises(
        UserError, match=r"optim\.batch_size: expected a multiple of 4, the number of proc"
    ):
        _check_batch_divides(6, 4)


def test_processes_that_would_train_apart_are_refused(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    PartialState(cpu=True)  # accelerate finds this process alone
    monkeypatch.setenv("WORLD_SIZE", "2")  # but two were launched
    config = make_config()
    with pytest.raises(UserError, match=r"device: expected 2 processes .* got 1; .*--device=cpu"):
        train(config)
    assert not config.output.exists()


class Processes:
    """Replace accelerate's state."""

    def __init__(self, number: int, device: str) -> None:
        self.num_processes, self.device = number, torch.device(device)


@pytest.mark.parametrize("backbone", ["test_resnet", "regnety_002"])
def test_batch_norm_is_synchronized_over_gpus(make_config: MakeConfig, backbone: str) -> None:
    """With the activations that timm puts into its own batch norms, as regnety's."""
    config = make_config().model
    config.backbone = backbone
    before = build_model(config, 3)
    acts = [type(m.act) for m in before.modules() if isinstance(m, nn.BatchNorm2d) and has_act(m)]
    assert synchronize(before, Processes(1, "cuda")) is before
    state = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    model = synchronize(before, Processes(2, "cuda"))
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert [type(norm.act) for norm in norms if has_act(norm)] == acts
    after = model.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


def has_act(norm: nn.Module) -> bool:
    return hasattr(norm, "act")


def test_a_single_process_weighs_nothing() -> None:
    loss = torch.tensor(2.0)
    assert rescale_annotation_loss(loss, torch.zeros(1, 2, 2), 3, 0.02, 255) is loss


def group_of_one(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'rendezvous'}", rank=0, world_size=1
    )


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_on_the_cpu_is_batch_norm(tmp_path: Path, momentum: float | None) -> None:
    """In a group of one: outputs, gradients and running statistics, in training and evaluation."""
    ours, theirs = (
        nn.Sequential(nn.BatchNorm2d(3, momentum=momentum), nn.Dropout2d(0.5)).double()
        for _ in range(2)
    )
    for model in (ours, theirs):
        nn.init.constant_(model[0].weight, 2.0)
        nn.init.constant_(model[0].bias, 0.3)
    ours = synchronize(ours, Processes(2, "cpu"))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in ours.modules())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    torch.manual_seed(0)
    batches = torch.randn(3, 2, 3, 4, 5, dtype=torch.float64) * 3 + 1
    group_of_one(tmp_path)
    try:
        for images in batches:
            made = []
            for model in (ours, theirs):
                x = images.clone().requires_grad_()
                torch.manual_seed(1)
                y = model(x)
                y.square().sum().backward()
                made.append([y, x.grad, model[0].weight.grad, model[0].bias.grad])
                model.zero_grad()
            torch.testing.assert_close(*made, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
        torch.testing.assert_close(ours.eval()(batches[0]), theirs.eval()(batches[0]))
    finally:
        torch.distributed.destroy_process_group()
