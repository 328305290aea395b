"""The dense CRF: labels follow the picture's edges; its options; what is said without it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from blpseg.cli.arguments import add_model_use_arguments, crf_of, make_parser
from blpseg.crf import dense_crf
from blpseg.crf_constants import AUTHORS, CRF, DEEPLAB
from blpseg.errors import UserError
from blpseg.evaluation import evaluate
from blpseg.prediction import predict


def mean_field(image: np.ndarray, p: np.ndarray, crf: CRF) -> np.ndarray:
    """All pairs written out: Kraehenbuehl and Koltun's mean field, symmetric normalization."""
    num_classes, height, width = p.shape
    places = np.indices((height, width)).reshape(2, -1).T.astype(float)
    colors = image.reshape(-1, 3).astype(float)

    def kernel(features: np.ndarray) -> np.ndarray:
        squares = ((features[:, None] - features) ** 2).sum(-1)
        near = np.exp(-squares / 2)
        root = np.sqrt(near.sum(1))
        return near / root[:, None] / root

    (near, smooth), (far, contrast, alike) = crf.smoothness, crf.appearance
    pairwise = smooth * kernel(places / near)
    pairwise += alike * kernel(np.hstack([places / far, colors / contrast]))
    energy = -np.log(np.clip(p.reshape(num_classes, -1), 1e-5, None))
    q = np.exp(-energy)
    for _ in range(crf.iterations + 1):
        q /= q.sum(0)
        last, q = q, np.exp(-energy + q @ pairwise)
    return last.argmax(0).reshape(height, width)


@pytest.mark.parametrize("crf", [DEEPLAB, AUTHORS], ids=["deeplab", "authors"])
def test_labels_are_the_mean_field_s(crf: CRF) -> None:
    pytest.importorskip("pydensecrf")
    rng = np.random.default_rng(0)
    image = np.full((20, 30, 3), 90, np.uint8)
    image[:, 13:] = 160
    truth = (np.arange(30) >= 13).astype(int) + np.zeros((20, 1), int)
    p = 0.45 + 0.1 * (truth == np.arange(3)[:, None, None]) + rng.normal(0, 0.3, (3, 20, 30))
    p = np.clip(p, 0.01, None)
    p /= p.sum(0)
    before = (p.argmax(0) == truth).mean()
    assert before < 0.9
    found = dense_crf(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(p), crf)
    assert found.dtype == torch.uint8 and found.shape == (20, 30)
    assert (found.numpy() == mean_field(image, p, crf)).mean() > 0.99
    assert (found.numpy() == truth).mean() > before + 0.05


def test_evaluation_with_the_crf(checkpoint: Path) -> None:
    pytest.importorskip("pydensecrf")
    with_crf = evaluate(checkpoint, crf=DEEPLAB, quiet=True)
    without = evaluate(checkpoint, overwrite=True, quiet=True)
    assert with_crf.crf == DEEPLAB and without.crf is None
    assert with_crf.scores.miou != without.scores.miou and with_crf.scores.miou > 0.4


def test_without_the_library_the_error_says_how_to_get_it(
    checkpoint: Path, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    calls = (
        lambda: evaluate(checkpoint, crf=DEEPLAB, quiet=True),
        lambda: predict(
            checkpoint, [str(shapes / "images")], tmp_path / "o", crf=DEEPLAB, quiet=True
        ),
    )
    for call in calls:
        with pytest.raises(
            UserError, match=r"crf: expected the package pydensecrf2, .*blpseg\[crf"
        ):
            call()
    assert not (tmp_path / "o").exists()


def options(*argv: str) -> CRF | None:
    parser = make_parser("test", "", "")
    add_model_use_arguments(parser)
    return crf_of(parser.parse(argv))


def test_options() -> None:
    assert options() is None
    assert options("--crf") == DEEPLAB
    assert options("--crf", "--crf_preset=authors") == AUTHORS
    changed = ("--crf_iterations=5", "--crf_appearance=[40,10,6]")
    expected = CRF(iterations=5, smoothness=(3, 3), appearance=(40, 10, 6))
    assert options("--crf", "--crf_preset=authors", *changed) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--crf_iterations=5"], "--crf_iterations: expected --crf with it"),
        (["--crf_preset=authors"], "--crf_preset: expected --crf with it"),
        (["--crf", "--crf_preset=mine"], "expected one of deeplab, authors"),
        (["--crf", "--crf_iterations=0"], "crf_iterations: expected at least 1, got 0"),
        (["--crf", "--crf_smoothness=[0,3]"], r"crf_smoothness: expected numbers above 0, got \[0"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_options(argv: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        options(*argv)
