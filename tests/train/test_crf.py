"""The dense CRF: labels follow the picture's edges; and what is said where it is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from blpseg.crf import dense_crf
from blpseg.errors import UserError
from blpseg.evaluation import evaluate
from blpseg.prediction import predict


def mean_field(image: np.ndarray, p: np.ndarray, iterations: int = 10) -> np.ndarray:
    """All pairs written out: Kraehenbuehl and Koltun's mean field, symmetric normalization."""
    num_classes, height, width = p.shape
    places = np.indices((height, width)).reshape(2, -1).T.astype(float)
    colors = image.reshape(-1, 3).astype(float)

    def kernel(features: np.ndarray) -> np.ndarray:
        squares = ((features[:, None] - features) ** 2).sum(-1)
        near = np.exp(-squares / 2)
        root = np.sqrt(near.sum(1))
        return near / root[:, None] / root

    pairwise = 3 * kernel(places) + 4 * kernel(np.hstack([places / 67, colors / 3]))
    energy = -np.log(np.clip(p.reshape(num_classes, -1), 1e-5, None))
    q = np.exp(-energy)
    for _ in range(iterations + 1):
        q /= q.sum(0)
        last, q = q, np.exp(-energy + q @ pairwise)
    return last.argmax(0).reshape(height, width)


def test_labels_are_the_mean_field_s() -> None:
    pytest.importorskip("pydensecrf")
    rng = np.random.default_rng(0)
    image = np.full((20, 30, 3), 90, np.uint8)
    image[:, 13:] = 160
    truth = (np.arange(30) >= 13).astype(int) + np.zeros((20, 1), int)
    p = 0.45 + 0.1 * (truth == np.arange(3)[:, None, None]) + rng.normal(0, 0.3, (3, 20, 30))
    p = np.clip(p, 0.01, None)
    p /= p.sum(0)
    assert (p.argmax(0) == truth).mean() < 0.9
    found = dense_crf(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(p))
    assert found.dtype == torch.uint8 and found.shape == (20, 30)
    assert (found.numpy() == mean_field(image, p)).mean() > 0.99
    assert (found.numpy() == truth).mean() > 0.98


def test_evaluation_with_the_crf(checkpoint: Path) -> None:
    pytest.importorskip("pydensecrf")
    with_crf = evaluate(checkpoint, crf=True, quiet=True)
    without = evaluate(checkpoint, overwrite=True, quiet=True)
    assert with_crf.crf and not without.crf
    assert with_crf.scores.miou != without.scores.miou and with_crf.scores.miou > 0.4


def test_without_the_library_the_error_says_how_to_get_it(
    checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    calls = (
        lambda: evaluate(checkpoint, crf=True, quiet=True),
        lambda: predict(checkpoint, [str(shapes / "images")], tmp_path / "o", crf=True, quiet=True),
    )
    for call in calls:
        with pytest.raises(
            UserError, match=r"crf: expected the package pydensecrf2, .*blpseg\[crf"
        ):
            call()
    assert not (tmp_path / "o").exists()
