"""The peers' losses against their formulas in float64, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from blpseg import BLPSeg
from blpseg.regularizers import REGULARIZERS, gated_crf_loss, soft_label_loss
from blpseg.regularizers.neighbors import reduce_labels
from blpseg.regularizers.soft_labels import collision_cross_entropy, label_energy, soft_labels

N, K, H, W = 2, 3, 4, 5


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, images twice as large, and labels with two scribbles and two ignored rows."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(N, K, H, W, generator=rng, dtype=torch.float64)
    images = torch.rand(N, 3, 2 * H, 2 * W, generator=rng, dtype=torch.float64)
    target = torch.full((N, 2 * H, 2 * W), K, dtype=torch.uint8)
    target[0, 0, :4] = 1
    target[1, 3:5, 6] = 2
    target[0, -2:] = 255
    return logits, images, target


def color(images: Tensor, n: int, y: int, x: int) -> Tensor:
    """Return the mean color of a cell of 2 x 2 pixels."""
    return images[n, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean((1, 2))


def is_ignored(n: int, y: int) -> bool:
    return n == 0 and y == H - 1


def pixels() -> list[tuple[int, int]]:
    return [(y, x) for y in range(H) for x in range(W)]


def test_gated_crf_is_its_formula() -> None:
    logits, images, target = inputs()
    radius, sigma_xy, sigma_rgb = 2, 1.5, 0.3
    probs = logits.softmax(1)
    expected = 0.0
    for n in range(N):
        total, count = 0.0, 0
        for ay, ax in pixels():
            if is_ignored(n, ay):
                continue
            count += 1
            for by, bx in pixels():
                distance = (ay - by) ** 2 + (ax - bx) ** 2
                if max(abs(ay - by), abs(ax - bx)) > radius or distance == 0 or is_ignored(n, by):
                    continue
                change = (color(images, n, ay, ax) - color(images, n, by, bx)).square().sum().item()
                weight = math.exp(-distance / (2 * sigma_xy**2) - change / (2 * sigma_rgb**2))
                agree = (probs[n, :, ay, ax] * probs[n, :, by, bx]).sum().item()
                total += weight * (1 - agree)
        expected += total / count / N
    found = gated_crf_loss(
        logits, images, target, radius=radius, sigma_xy=sigma_xy, sigma_rgb=sigma_rgb
    )
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_gated_crf_has_the_gradient_of_its_formula() -> None:
    logits, images, target = inputs()
    # A window larger than the image: offsets without any pair.
    assert torch.autograd.gradcheck(
        lambda x: gated_crf_loss(x, images, target, radius=6), logits.requires_grad_()
    )


def reduced(target: Tensor) -> tuple[Tensor, Tensor]:
    seeds, counted = reduce_labels(target, K, (H, W))
    return seeds.double(), counted


def test_labels_are_reduced_by_votes_of_labeled_pixels() -> None:
    _, _, target = inputs()
    target[0, 1, 0] = 2
    seeds, counted = reduced(target)
    assert seeds[0, :, 0, 0].tolist() == pytest.approx([0, 2 / 3, 1 / 3])
    assert seeds[0, :, 0, 1].tolist() == [0, 1, 0]
    assert seeds.sum(1).count_nonzero() == 4  # cells with a scribble
    assert not counted[0, -1].any() and counted[0, :-1].all() and counted[1].all()


def test_label_energy_is_its_formula() -> None:
    logits, images, target = inputs()
    seeds, counted = reduced(target)
    probs, eta, weight, sigma = logits.softmax(1), 0.3, 2.0, 0.4
    labels = torch.where(seeds.sum(1, keepdim=True) > 0, seeds, (logits + 0.5).softmax(1).flip(1))
    expected = 0.0
    for n in range(N):
        for ay, ax in pixels():
            if is_ignored(n, ay):
                continue
            a = labels[n, :, ay, ax]
            if seeds[n, :, ay, ax].sum() == 0:
                expected -= eta * (a @ probs[n, :, ay, ax]).log().item()
            for by, bx in pixels():
                # Each pair of 8-neighbors once.
                if (by, bx) <= (ay, ax) or max(by - ay, abs(bx - ax)) > 1 or is_ignored(n, by):
                    continue
                b = labels[n, :, by, bx]
                change = (color(images, n, ay, ax) - color(images, n, by, bx)).square().sum().item()
                cosine = (a @ b / (a.norm() * b.norm())).clamp(min=1e-8)
                expected -= weight * math.exp(-change / (2 * sigma**2)) * cosine.log().item()
    colors = torch.nn.functional.adaptive_avg_pool2d(images, (H, W))
    found = label_energy(
        labels,
        probs,
        colors,
        seeds,
        counted,
        potts_weight=weight,
        unary_weight=eta,
        sigma_rgb=sigma,
    )
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_soft_labels_lower_the_energy_and_keep_the_seeds() -> None:
    logits, images, target = inputs()
    seeds, counted = reduced(target)
    colors = torch.nn.functional.adaptive_avg_pool2d(images, (H, W))
    probs = logits.softmax(1)
    dials = {"potts_weight": 6.0, "unary_weight": 0.3, "sigma_rgb": 0.3}
    fixed = seeds.sum(1, keepdim=True) > 0
    energies = []
    for steps in (0, 5, 20):
        labels = soft_labels(probs, colors, seeds, counted, steps=steps, step_size=0.1, **dials)
        assert torch.equal(labels * fixed, seeds)
        torch.testing.assert_close(labels.sum(1), torch.ones(N, H, W, dtype=torch.float64))
        energies.append(label_energy(labels, probs, colors, seeds, counted, **dials).item())
    assert energies[0] > energies[1] > energies[2]


def test_soft_label_loss_and_its_gradient() -> None:
    """The labels are constants: the gradient is that of the collision cross entropy alone."""
    logits, images, target = inputs()
    logits.requires_grad_()
    loss = soft_label_loss(logits, images, target)
    (gradient,) = torch.autograd.grad(loss, logits)
    seeds, counted = reduced(target)
    colors = torch.nn.functional.adaptive_avg_pool2d(images, (H, W))
    labels = soft_labels(
        logits.detach().softmax(1),
        colors,
        seeds,
        counted,
        potts_weight=6.0,
        unary_weight=0.3,
        sigma_rgb=0.05,
        steps=20,
        step_size=0.1,
    )

    def expected(logits: Tensor) -> Tensor:
        per_pixel = collision_cross_entropy(labels, logits.softmax(1))
        free = counted & (seeds.sum(1) == 0)
        return torch.stack([per_pixel[n][free[n]].mean() for n in range(N)]).mean()

    assert loss.item() == pytest.approx(expected(logits).item())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected(logits), logits)[0])
    assert torch.autograd.gradcheck(expected, logits)


@pytest.mark.parametrize("loss", [gated_crf_loss, soft_label_loss])
def test_an_image_without_counted_pixels_gives_zero(loss: Callable[..., Tensor]) -> None:
    logits, images, target = inputs()
    logits.requires_grad_()
    found = loss(logits, images, torch.full_like(target, 255))
    found.backward()
    assert found == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize("name", REGULARIZERS)
def test_the_network_adds_a_regularizer_with_its_weight(name: str) -> None:
    torch.manual_seed(0)
    size = {"pretrained": False, "width": 16, "embedding_dim": 8}
    model = BLPSeg(K, "test_resnet", regularizer=name, regularizer_weight=0.5, **size).eval()
    images, target = torch.rand(1, 3, 32, 32), torch.full((1, 32, 32), K, dtype=torch.uint8)
    target[0, 4:8, 4:8] = 1
    found = model.losses(images, target, torch.ones(1, K, dtype=torch.bool))["regularizer"]
    expected = REGULARIZERS[name][0](model.logits(images)[0], images, target)
    torch.testing.assert_close(found, 0.5 * expected)
    with pytest.raises(ValueError, match="regularizer must be none, gated_crf, soft_labels, got"):
        BLPSeg(K, "test_resnet", regularizer="potts", **size)
