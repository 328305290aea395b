"""Predictions of an image: views, windows, and the averages of their logits."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blpseg import inference
from blpseg.checkpoints import load_model
from blpseg.config import DataConfig
from blpseg.data.folder import ScribbleFolder
from blpseg.errors import UserError
from blpseg.inference import Prediction, predict_image
from blpseg.views import Views


class Recorder(nn.Module):
    """Replace a model: record the inputs and return the mean of each 4 x 4 cell."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[Tensor] = []

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append(images)
        return answer(images)


def answer(images: Tensor) -> tuple[Tensor, Tensor]:  # [1, 3, H, W] -> two at stride 4
    height, width = images.shape[2:]
    padded = F.pad(images, (0, -width % 4, 0, -height % 4), mode="replicate")
    gray = F.avg_pool2d(padded.mean(1, keepdim=True), 4) - 0.5  # both classes occur
    return torch.cat([gray, -gray], 1), torch.cat([gray, 0.5 - gray, 0 * gray], 1)


@pytest.fixture
def ramp() -> Tensor:
    """Return an image [3, 30, 50] that brightens from left to right."""
    return torch.linspace(0, 255, 50).round().to(torch.uint8).expand(3, 30, 50)


@pytest.fixture
def noise() -> Tensor:
    """Return an image [3, 45, 70] of smooth noise."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 6, 9, generator=rng)
    return (255 * F.interpolate(coarse, (45, 70), mode="bicubic").clamp(0, 1))[0].to(torch.uint8)


def test_scales_and_flips_are_what_the_model_sees(ramp: Tensor) -> None:
    model = Recorder()
    predict_image(model, ramp, Views([0.5, 1, 1.25], flip=True))
    assert [tuple(view.shape) for view in model.seen] == [
        (1, 3, height, width) for height, width in [(15, 25), (30, 50), (38, 62)] for _ in range(2)
    ]
    for plain, mirrored in zip(model.seen[::2], model.seen[1::2], strict=True):
        assert torch.equal(plain.flip(-1), mirrored)
        assert (plain[..., 1:] >= plain[..., :-1]).all()


def averaged(views: list[tuple[Tensor, bool]], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Compute the published average with `interpolate` at full size: [K, H, W], [K + 1, H, W]."""
    totals = []
    for which in (0, 1):
        parts = []
        for view, mirrored in views:
            full = F.interpolate(answer(view)[which].double(), view.shape[2:], mode="bilinear")
            full = full.flip(-1) if mirrored else full
            parts.append(F.interpolate(full, size, mode="bilinear", align_corners=True))
        totals.append(torch.stack(parts).mean(0)[0])
    return totals[0], totals[1]


@pytest.mark.parametrize("strip", [1, 4000, 2**22])
@pytest.mark.parametrize(
    ("scales", "flip"), [([1], False), ([0.5], False), ([0.5, 1, 1.3], True), ([1], True)]
)
def test_logits_are_resized_with_corners_aligned_and_averaged(
    noise: Tensor,
    scales: list[float],
    flip: bool,
    strip: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inference, "_BAND_SIZE", strip)
    model = Recorder()
    found = predict_image(model, noise, Views(scales, flip=flip))
    mirrored = [False, True] * len(scales) if flip else [False] * len(scales)
    seg, annotation = averaged(list(zip(model.seen, mirrored, strict=True)), (45, 70))
    assert found.labels.dtype == torch.uint8 and found.labels.shape == (45, 70)
    clear = (seg[0] - seg[1]).abs() > 1e-4
    assert clear.double().mean() > 0.99 and len(found.labels.unique()) == 2
    assert torch.equal(found.labels[clear], seg.argmax(0)[clear].to(torch.uint8))
    expected = 1 - annotation.softmax(0)[-1]
    torch.testing.assert_close(found.annotation_probability, expected.float())


@pytest.mark.parametrize(("window", "stride"), [(16, None), (16, 16), (24, 12), (44, 4), (8, 8)])
@pytest.mark.parametrize("flip", [False, True])
def test_windows_change_nothing_of_a_model_that_looks_at_one_cell(
    noise: Tensor, window: int, stride: int | None, flip: bool
) -> None:
    whole = predict_image(Recorder(), noise, Views([0.7, 1], flip, window=None))
    model = Recorder()
    found = predict_image(model, noise, Views([0.7, 1], flip, window, stride))
    assert max(max(view.shape[2:]) for view in model.seen) <= window
    assert torch.equal(found.labels, whole.labels)
    torch.testing.assert_close(found.annotation_probability, whole.annotation_probability)


def test_windows_count_alike_where_they_overlap(noise: Tensor) -> None:
    """Each call returns its number as the logits; a cell gets the mean over its windows."""

    class Counter(Recorder):
        def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
            seg, annotation = super().logits(images)
            return torch.full_like(seg, len(self.seen)), torch.full_like(annotation, 0.0)

    (view,) = inference.run_views(Counter(), noise, Views(window=16, stride=8))
    starts = [(0, 8, 16, 24, 32), (0, 8, 16, 24, 32, 40, 48, 56)]  # 45 and 70 pixels
    assert [Views(window=16, stride=8).starts(side) for side in (45, 70)] == [
        list(part) for part in starts
    ]
    total, seen = torch.zeros(12, 18), torch.zeros(12, 18)
    for number, (top, left) in enumerate(itertools.product(*starts), 1):
        cells = (slice(top // 4, top // 4 + 4), slice(left // 4, left // 4 + 4))
        total[cells] += number
        seen[cells] += 1
    torch.testing.assert_close(view.segmentation[0], total / seen)


def test_windows_cover_a_side_and_begin_at_cells() -> None:
    views = Views(window=32, stride=20)
    for side in range(1, 120):
        starts = views.starts(side)
        seen = {pixel for start in starts for pixel in range(start, min(side, start + 32))}
        assert seen == set(range(side))
        assert all(start % 4 == 0 for start in starts) and starts == sorted(set(starts))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scales": []}, "scales: expected one or more numbers above 0, got []"),
        ({"scales": [1, -0.5]}, "scales: expected one or more numbers above 0"),
        ({"window": 30}, "window: expected a multiple of 4, got 30"),
        ({"window": 0}, "window: expected a multiple of 4, got 0"),
        ({"window": 32, "stride": 6}, "stride: expected a multiple of 4, got 6"),
        ({"window": 32, "stride": 36}, "stride: expected at most the window, 32, got 36"),
        ({"window": None, "stride": 8}, "stride: expected at most the window, None, got 8"),
    ],
)
def test_views_out_of_range_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Views(**fields)
    assert message in str(caught.value)


def test_windows_of_a_trained_model_agree_with_the_whole(checkpoint: Path, shapes: Path) -> None:
    """Labels may differ near window borders, where the network sees less context."""
    model = load_model(checkpoint).model
    image = ScribbleFolder(DataConfig(shapes))[0].image
    whole = predict_image(model, image)
    found = predict_image(model, image, Views(window=48, stride=16))
    assert isinstance(found, Prediction)
    assert (found.labels == whole.labels).double().mean() > 0.8


_MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from blpseg.checkpoints import build_model, save_checkpoint
from blpseg.config import ModelConfig
from blpseg.prediction import predict
from blpseg.views import Views

torch.set_num_threads(1)
folder, classes = Path(sys.argv[1]), 24
config = ModelConfig("test_resnet", pretrained=False, width=16, embedding_dim=8)
content = {"model": build_model(config, classes).state_dict(), "config": {"model": vars(config)}}
names = [str(label) for label in range(classes)]
save_checkpoint(folder / "model.pt", content | {"classes": names, "iteration": 0})
peaks = []
for height, width in ((300, 500), (800, 1200)):
    path = folder / f"{height}.jpg"
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    failed = predict(folder / "model.pt", [str(path)], folder / f"{height}", quiet=True,
                     views=Views(window=256, stride=256))
    assert not failed, failed
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
print((peaks[1] - peaks[0]) / (800 * 1200 - 300 * 500))
"""


def test_memory_per_pixel_does_not_grow_with_classes(tmp_path: Path) -> None:
    """24 + 25 logits per pixel would take 196 bytes; the network's maps would double that."""
    done = subprocess.run(
        [sys.executable, "-c", _MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 70
