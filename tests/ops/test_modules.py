"""LocalAggregation and BLPLoss, and the dtypes that ops accept and return."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import blpseg_ops
from blpseg_ops import BLPLoss, LocalAggregation


def _lam_pixel_by_pixel(features: Tensor, values: Tensor, sigma: float, eps: float) -> Tensor:
    """Compute LAM's definition with loops over pixel pairs; for small maps."""
    _, _, h, w = features.shape
    pixels = [(y, x) for y in range(h) for x in range(w)]
    output = torch.zeros_like(values)
    for n in range(len(features)):
        for yb, xb in pixels:
            z, t, total = 0.0, 0.0, torch.zeros_like(values[n, :, 0, 0])
            for ya, xa in pixels:
                score = math.exp(float(features[n, :, ya, xa] @ features[n, :, yb, xb]))
                weight = score * math.exp(-((ya - yb) ** 2 + (xa - xb) ** 2) / (2 * sigma**2))
                z, t, total = z + weight, t + score, total + weight * values[n, :, ya, xa]
            output[n, :, yb, xb] = total / (z + eps * t)
    return output


@pytest.mark.parametrize("eps", [0.0, 0.05])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("block", [2**24, 1], ids=["one block", "one block per pixel"])
def test_lam_is_its_definition(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch, eps: float, backend: str, block: int
) -> None:
    monkeypatch.setattr(sys.modules["blpseg_ops.fallback.lam"], "BLOCK", block)
    features = torch.randn(2, 3, 3, 4, generator=rng, dtype=torch.float64)
    values = torch.randn(2, 2, 3, 4, generator=rng, dtype=torch.float64)
    output = blpseg_ops.lam(features, values, 1.2, eps=eps, backend=backend)
    expected = _lam_pixel_by_pixel(features, values, 1.2, eps)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_local_aggregation_embeds_padded_patches(rng: torch.Generator) -> None:
    module = LocalAggregation(dim=6, patch=4, sigma=2.0, eps=1e-7).double()
    images = torch.randn(2, 3, 9, 14, generator=rng, dtype=torch.float64)
    logits = torch.randn(2, 5, 3, 4, generator=rng, dtype=torch.float64)
    features = module.embed(images)
    assert features.shape == (2, 6, 3, 4)

    # The last patch by hand: one row comes from the image, the rest is zero padding.
    patch = torch.zeros(3, 4, 4, dtype=torch.float64)
    patch[:, :1, :2] = images[1, :, 8:, 12:]
    projected = (module.proj.weight * patch).sum((1, 2, 3)) + module.proj.bias
    normed = F.layer_norm(projected, (6,), module.norm.weight, module.norm.bias)
    by_hand = module.conv.weight[:, :, 0, 0] @ normed + module.conv.bias
    torch.testing.assert_close(features[1, :, 2, 3], by_hand)

    output = module(images, logits)
    expected = _lam_pixel_by_pixel(features.detach(), logits, 2.0, 1e-7)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)


def test_local_aggregation_sees_a_window_and_another_sigma(rng: torch.Generator) -> None:
    module = LocalAggregation(dim=6, patch=2, sigma=2.0, radius=1).double()
    images = torch.randn(2, 3, 9, 14, generator=rng, dtype=torch.float64)
    logits = torch.randn(2, 5, 5, 7, generator=rng, dtype=torch.float64)
    for sigma in (2.0, 0.5):
        expected = blpseg_ops.reference.lam(module.embed(images), logits, sigma, radius=1)
        output = module(images, logits, sigma=None if sigma == 2.0 else sigma)
        torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    assert "patch=2, sigma=2.0, radius=1, eps=0.0, scale=1.0" in repr(module)


@pytest.mark.parametrize("patch", [1, 2, 8, 16, 32])
def test_local_aggregation_at_any_stride(patch: int, rng: torch.Generator) -> None:
    module = LocalAggregation(dim=8, patch=patch, in_channels=2)
    images = torch.randn(1, 2, 37, 50, generator=rng)
    logits = torch.randn(1, 3, -(-37 // patch), -(-50 // patch), generator=rng)
    output = module(images, logits)
    expected = blpseg_ops.reference.lam(module.embed(images), logits)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


def test_local_aggregation_trains_its_embedding(rng: torch.Generator) -> None:
    module = LocalAggregation(dim=4, sigma=1.5)
    images = torch.randn(1, 3, 12, 12, generator=rng)
    logits = torch.randn(1, 2, 3, 3, generator=rng)
    module(images, logits).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
    assert module.proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("dim", [256, 70])
def test_coordinates_stand_for_the_embedding(dim: int, rng: torch.Generator) -> None:
    module = LocalAggregation(dim=dim, sigma=1.5, eps=1e-3, scale=0.05).double()
    with torch.no_grad():  # as after training: gains differ from 1, biases from 0
        for parameter in (*module.norm.parameters(), module.proj.bias, module.conv.bias):
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    images = torch.randn(2, 3, 17, 30, generator=rng, dtype=torch.float64)
    logits = torch.randn(2, 4, 5, 8, generator=rng, dtype=torch.float64)
    gradient = torch.randn(logits.shape, generator=rng, dtype=torch.float64)

    def run(embed: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        features = embed(images)
        output = blpseg_ops.lam(features, logits, 1.5, eps=1e-3, scale=0.05)
        return output.detach(), *torch.autograd.grad(output, module.parameters(), gradient)

    coordinates = module.coordinates(images)
    assert coordinates.shape == (2, 50, 5, 8)
    products = torch.einsum("ndyx,ndyx->nyx", coordinates, coordinates)
    expected = module.embed(images).square().sum(1)
    torch.testing.assert_close(products, expected, rtol=1e-11, atol=0)
    names = ["output", *(name for name, _ in module.named_parameters())]
    for name, got, wanted in zip(names, run(module.coordinates), run(module.embed), strict=True):
        assert wanted.abs().max() > 0, name
        error = (got - wanted).abs().max() / wanted.abs().max()
        assert error < 1e-11, name


def test_lam_gets_coordinates_if_the_module_should_project(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = LocalAggregation(dim=128, sigma=1.5).double()
    images = torch.randn(1, 3, 12, 12, generator=rng, dtype=torch.float64)
    logits = torch.randn(1, 2, 3, 3, generator=rng, dtype=torch.float64)
    expected = module(images, logits)
    monkeypatch.setattr(module, "_should_project", lambda: True)
    monkeypatch.setattr(module, "embed", None)
    torch.testing.assert_close(module(images, logits), expected, rtol=1e-11, atol=1e-12)


def test_with_queries_lam_gets_coordinates_everywhere(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = LocalAggregation(dim=128, sigma=1.5, scale=0.05, query_stride=2).double()
    images = torch.randn(1, 3, 12, 13, generator=rng, dtype=torch.float64)
    logits = torch.randn(1, 2, 3, 4, generator=rng, dtype=torch.float64)

    def run() -> tuple[Tensor, ...]:
        output = module(images, logits)
        return output.detach(), *torch.autograd.grad(output.square().sum(), module.parameters())

    with monkeypatch.context() as patch:
        patch.setattr(module, "_should_project", lambda: False)
        expected = run()
    monkeypatch.setattr(module, "embed", None)
    for got, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


def test_coordinates_of_a_degenerate_embedding(rng: torch.Generator) -> None:
    module = LocalAggregation(dim=128).double()
    with torch.no_grad():
        module.proj.weight[:, 1] = module.proj.weight[:, 0]  # two colors are equal
        for bias in (module.proj.bias, module.conv.bias, module.norm.bias):
            bias.zero_()
    images = torch.randn(1, 3, 12, 12, generator=rng, dtype=torch.float64)
    squares = (module.coordinates(images).square().sum(1), module.embed(images).square().sum(1))
    torch.testing.assert_close(*squares, rtol=1e-11, atol=0)


def test_modules_print_their_settings() -> None:
    assert "sigma=2.5" in repr(LocalAggregation(dim=4, sigma=2.5))
    assert "gamma=2.0" in repr(BLPLoss())


def test_blp_loss_module_is_the_function(rng: torch.Generator) -> None:
    seg, annotation = (torch.randn(2, k, 3, 3, generator=rng) for k in (3, 4))
    target = torch.randint(0, 4, (2, 6, 6), generator=rng)
    target[0, 0, 0] = 200
    loss = BLPLoss(gamma=1.5, ignore_index=200)(seg, annotation, target)
    expected = blpseg_ops.blp_loss(seg, annotation, target, gamma=1.5, ignore_index=200)
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_are_widened_and_rounded_once(
    rng: torch.Generator, dtype: torch.dtype
) -> None:
    features, values = (torch.randn(1, c, 4, 5, generator=rng).to(dtype) for c in (6, 3))
    output = blpseg_ops.lam(features, values)
    assert output.dtype == dtype
    assert torch.equal(output, blpseg_ops.lam(features.float(), values.float()).to(dtype))

    annotation = torch.randn(1, 4, 4, 5, generator=rng).to(dtype)
    target = torch.randint(0, 4, (1, 9, 9), generator=rng)
    loss = blpseg_ops.blp_loss(values.requires_grad_(), annotation, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, blpseg_ops.blp_loss(values.float(), annotation.float(), target))
    (grad,) = torch.autograd.grad(loss, values)
    assert grad.dtype == dtype


def test_autocast_takes_lam_and_losses_in_float32(rng: torch.Generator) -> None:
    module = LocalAggregation(dim=8)
    images = torch.randn(1, 3, 16, 16, generator=rng)
    seg, annotation = (torch.randn(1, k, 4, 4, generator=rng) for k in (3, 4))
    target = torch.randint(0, 4, (1, 16, 16), generator=rng)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = seg.bfloat16()
        output = module(images, narrow)
        loss = blpseg_ops.blp_loss(output, annotation.bfloat16(), target)
        annotated = blpseg_ops.annotation_loss(annotation.bfloat16(), target)
    assert output.dtype == loss.dtype == annotated.dtype == torch.float32
    torch.testing.assert_close(output, module(images, narrow.float()))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_targets_of_every_integer_type(rng: torch.Generator, dtype: torch.dtype) -> None:
    seg, annotation = (torch.randn(2, k, 3, 3, generator=rng) for k in (3, 4))
    target = torch.randint(0, 5, (2, 7, 7), generator=rng)
    target = target.where(target < 4, 255)
    present = torch.ones(2, 3, dtype=torch.bool)
    same = target.to(dtype)
    assert torch.equal(
        blpseg_ops.blp_loss(seg, annotation, same), blpseg_ops.blp_loss(seg, annotation, target)
    )
    assert torch.equal(
        blpseg_ops.annotation_loss(annotation, same), blpseg_ops.annotation_loss(annotation, target)
    )
    assert torch.equal(
        blpseg_ops.pseudo_labels(seg, same, present), blpseg_ops.pseudo_labels(seg, target, present)
    )


def test_query_stride_of_the_patch_changes_nothing() -> None:
    torch.manual_seed(0)
    plain = LocalAggregation(dim=8, sigma=2.0, eps=1e-3)
    queried = LocalAggregation(dim=8, sigma=2.0, eps=1e-3, query_stride=4)
    queried.load_state_dict(plain.state_dict())
    images, logits = torch.randn(2, 3, 30, 41), torch.randn(2, 5, 8, 11)
    torch.testing.assert_close(queried(images, logits), plain(images, logits))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("grid", [(8, 11), (3, 4)], ids=["stride 4", "stride 11"])
def test_finer_queries_follow_the_image(stride: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = LocalAggregation(dim=32, sigma=1.0, radius=1.5, query_stride=stride)
    images = torch.zeros(1, 3, 30, 41)
    images[..., 22:] = 2.0  # an edge that is no border of the coarse pixels
    logits = torch.zeros(1, 2, *grid)
    logits[:, 0, :, : round(grid[1] * 22 / 41)] = 1.0
    logits.requires_grad_()
    output = module(images, logits)
    assert output.shape == (1, 2, -(-30 // stride), -(-41 // stride))
    edge = 22 // stride
    assert output[0, 0, :, : edge - 3].min() > 0.99
    assert output[0, 0, :, edge + 3 :].max() < 0.01
    output.sum().backward()
    assert module.conv.weight.grad is not None
    assert logits.grad is not None


def test_embedding_at_a_finer_stride_is_the_convolution_at_that_stride() -> None:
    torch.manual_seed(0)
    module = LocalAggregation(dim=8)
    images = torch.randn(1, 3, 16, 20)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    patches = torch.nn.functional.conv2d(padded, module.proj.weight, module.proj.bias, stride=2)
    normed = module.norm(patches.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(module.embed(images, 2), module.conv(normed))
    assert module.embed(images, 2).shape == (1, 8, 8, 10)
    assert module.coordinates(images, 1).shape == (1, 50, 16, 20)
