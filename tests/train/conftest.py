"""A small data set, a small configuration and a model trained on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blpseg.config import (
    AugmentConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from blpseg.data.folder import ScribbleFolder
from blpseg.training import TrainResult, train

CLASSES = ["background", "disc", "square"]
UNLABELED = 255
HEIGHT, WIDTH = 48, 64


def draw_shapes(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a disc and a square: image [H, W, 3], scribbles [H, W] and mask [H, W], all uint8."""
    rng = np.random.default_rng(seed)
    row, disc, square = rng.integers(16, 32), rng.integers(14, 22), rng.integers(42, 50)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[(y - row) ** 2 + (x - disc) ** 2 < 100] = 1
    mask[(abs(y - row) < 9) & (abs(x - square) < 9)] = 2
    colors = np.array([[60, 90, 60], [200, 80, 60], [70, 90, 210]])
    noise = rng.normal(0, 15, (HEIGHT, WIDTH, 3))
    image = np.clip(colors[mask] + noise, 0, 255).astype(np.uint8)
    scribbles = np.full((HEIGHT, WIDTH), UNLABELED, np.uint8)
    scribbles[2, 4:-4] = 0
    scribbles[row, disc - 4 : disc + 5] = 1
    scribbles[row, square - 4 : square + 5] = 2
    return image, scribbles, mask


def write_shapes(root: Path, train_count: int, val_count: int) -> Path:
    """Write a data set of shapes with masks and, where there are images for both, split lists."""
    names = [f"shape{seed}" for seed in range(train_count + val_count)]
    for seed, name in enumerate(names):
        for folder, pixels in zip(("images", "scribbles", "masks"), draw_shapes(seed), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{name}.png")
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    if val_count:
        (root / "splits").mkdir()
        (root / "splits" / "train.txt").write_text("\n".join(names[:train_count]))
        (root / "splits" / "val.txt").write_text("\n".join(names[train_count:]))
    return root


def folder_of(
    root: Path, split: str | None = None, *, labels: str = "scribbles", **options: object
) -> ScribbleFolder:
    """Open a folder with data options."""
    return ScribbleFolder(DataConfig(root, **options), split, labels=labels)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Use one thread: networks this small are slower on several."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of 5 training and 2 validation images; tests must not change it."""
    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", 5, 2)


@pytest.fixture
def own_shapes(tmp_path: Path) -> Path:
    """Return a data set of 3 images without split lists; a test may change it."""
    return write_shapes(tmp_path / "shapes", 3, 0)


@pytest.fixture
def make_config(shapes: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Return a maker of small configurations, given the parts that differ."""
    return lambda **parts: small_config(shapes, tmp_path / "run", **parts)


def small_config(root: Path, output: Path, **parts: object) -> TrainConfig:
    """Configure 4 iterations of a tiny network on the CPU."""
    defaults = {
        "data": DataConfig(root, workers=0),
        "model": ModelConfig("test_resnet", pretrained=False, width=16, embedding_dim=8),
        "augment": AugmentConfig(crop=32),
        "optim": OptimConfig(3e-3, batch_size=2, iterations=4, self_training_from=None),
        "log": LogConfig(scalars_every=1),
        "device": "cpu",
    }
    return TrainConfig(output=output, **defaults | parts)


@pytest.fixture(scope="session")
def trained_once(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Train long enough to tell the shapes apart."""
    torch.set_num_threads(1)
    optim = OptimConfig(1e-2, batch_size=4, iterations=40, self_training_from=30)
    config = small_config(shapes, tmp_path_factory.mktemp("trained") / "run", optim=optim)
    return train(config, on_step=lambda step: None)


@pytest.fixture
def checkpoint(trained_once: TrainResult, tmp_path: Path) -> Path:
    """Return a copy of the trained checkpoint."""
    return Path(shutil.copy(trained_once.last, tmp_path / "trained.pt"))
