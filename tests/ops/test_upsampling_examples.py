"""examples/feature_upsampling.py against the formulas of the papers, in plain PyTorch."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ._common import randn

FILE = Path(__file__).parents[2] / "examples" / "feature_upsampling.py"
if not FILE.exists():
    pytest.skip("examples/ exists in a checkout only", allow_module_level=True)
EXAMPLE = runpy.run_path(str(FILE))


def windowed_attention(q: Tensor, k: Tensor, v: Tensor, radius: float) -> Tensor:
    """Softmax over the keys at most `radius` rows and columns away."""
    (h, w), (height, width) = k.shape[2:], q.shape[2:]
    y, x = (torch.arange(height) + 0.5) * h / height - 0.5, (torch.arange(width) + 0.5) * w / width
    dy, dx = torch.arange(h)[:, None] - y, torch.arange(w)[:, None] - (x - 0.5)
    seen = (dy.abs() <= radius)[:, None, :, None] & (dx.abs() <= radius)[None, :, None, :]
    score = torch.einsum("ndab,ndyx->nabyx", k, q) / q.shape[1] ** 0.5
    prob = score.masked_fill(~seen, -torch.inf).flatten(1, 2).softmax(1).unflatten(1, (h, w))
    return torch.einsum("ncab,nabyx->ncyx", v, prob)


def test_anyup() -> None:
    q, k, v = randn(2, 8, 24, 20), randn(2, 8, 6, 5, seed=1), randn(2, 7, 6, 5, seed=2)
    found = EXAMPLE["anyup_attention"](q, k, v, 1.2)
    torch.testing.assert_close(found, windowed_attention(q, k, v, 1.2))


def test_naf_scores_depend_on_relative_positions() -> None:
    q, k, v = randn(1, 8, 24, 20), randn(1, 8, 6, 5, seed=1), randn(1, 7, 6, 5, seed=2)
    rotate = EXAMPLE["rotate"]
    expected = windowed_attention(rotate(q), rotate(k), v, 1.5)
    torch.testing.assert_close(EXAMPLE["naf_attention"](q, k, v, 3), expected)
    torch.testing.assert_close(rotate(q).norm(dim=1), q.norm(dim=1))
    same = rotate(torch.ones(1, 8, 4, 4, dtype=torch.float64))
    scores = torch.einsum("dyx,dba->yxba", same[0], same[0])
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[2, 1, 3, 3])


def test_featup_jbu() -> None:
    """FeatUp's formula where its window lies inside, so that reflection does not matter."""
    source, guide = randn(1, 3, 5, 6), 0.5 * randn(1, 4, 20, 24, seed=1)
    temperature, sigma, radius = 1.3, 0.8, 3
    resized = F.interpolate(source, (20, 24), mode="bicubic")
    side = 2 * radius + 1
    windows, guides = (
        F.unfold(F.pad(x, [radius] * 4, mode="reflect"), side).unflatten(1, (-1, side**2))
        for x in (resized, guide)
    )
    step = torch.linspace(-1, 1, side, dtype=torch.float64)
    spatial = (-(step[:, None] ** 2 + step**2) / (2 * sigma**2)).exp().flatten()
    ranges = (temperature * (guides * guide.flatten(2)[:, :, None]).sum(1)).softmax(1)
    combined = ranges * spatial[:, None]
    combined = combined / combined.sum(1, keepdim=True)
    expected = (windows * combined[:, None]).sum(2).reshape(1, 3, 20, 24)
    found = EXAMPLE["featup_jbu"](source, guide, temperature, sigma, radius)
    inside = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    torch.testing.assert_close(found[inside], expected[inside])
