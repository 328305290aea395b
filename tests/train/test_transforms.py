"""Augmentation: images and targets move together; pixels outside the image are ignored."""

from __future__ import annotations

import torch
from torchvision import tv_tensors

from blpseg.data.transforms import RandomScale, augment

MEAN = (0.485, 0.456, 0.406)


def image_of(labels: torch.Tensor) -> tv_tensors.Image:
    """Return an image [3, H, W] whose gray value is 20 times the label."""
    return tv_tensors.Image((20 * labels).expand(3, -1, -1).contiguous())


def checker(height: int, width: int, cell: int) -> tv_tensors.Mask:
    """Return labels [H, W] in square cells: 2 * row + column of the cell."""
    rows = torch.arange(height)[:, None] // cell
    columns = torch.arange(width)[None] // cell
    return tv_tensors.Mask((2 * rows + columns).to(torch.uint8))


def test_scale_resizes_image_and_labels_alike() -> None:
    torch.manual_seed(0)
    labels = checker(40, 60, 20)
    sizes = set()
    for _ in range(50):
        image, target = RandomScale(0.75, 1.25)(image_of(labels), labels)
        assert image.shape[-2:] == target.shape
        assert set(target.unique().tolist()) == set(labels.unique().tolist())
        assert 30 <= target.shape[0] <= 50 and abs(target.shape[1] - 1.5 * target.shape[0]) <= 1.5
        sizes.add(target.shape[0])
    assert min(sizes) <= 32 and max(sizes) >= 48


def test_scale_is_bicubic_for_images_and_nearest_for_labels() -> None:
    labels = tv_tensors.Mask(torch.zeros(20, 20, dtype=torch.uint8))
    labels[:, 10:] = 5
    image, target = RandomScale(2, 2)(image_of(labels), labels)
    assert target[0].tolist() == [0] * 20 + [5] * 20
    row = image[0, 20].int()
    # Bicubic interpolation overshoots at an edge; linear and nearest stay within 0 to 100.
    assert row.max() > 100 and len(row.unique()) > 3


def test_augment_pads_with_the_mean_and_ignore() -> None:
    torch.manual_seed(0)
    labels = tv_tensors.Mask(torch.full((10, 12), 4, dtype=torch.uint8))
    image, target = augment(0.5, (1, 1), 32, MEAN)(image_of(labels), labels)
    assert image.shape == (3, 32, 32) and target.shape == (32, 32)
    assert image.dtype == torch.float32 and target.dtype == torch.uint8
    inside = target == 4
    assert inside.sum() == 10 * 12 and (target[~inside] == 255).all()
    assert (image[:, ~inside] == torch.tensor(MEAN)[:, None]).all()
    torch.testing.assert_close(image[0, inside].max().item(), 80 / 255)


def test_augment_keeps_image_and_target_aligned() -> None:
    torch.manual_seed(0)
    labels = checker(40, 40, 8)
    transform = augment(0.5, (1, 1), 24, MEAN)
    mirrored = 0
    for _ in range(40):
        image, target = transform(image_of(labels), labels)
        gray = image[0] * 255
        torch.testing.assert_close(
            gray.as_subclass(torch.Tensor), 20.0 * target.as_subclass(torch.Tensor)
        )
        mirrored += bool(target[0, 0] > target[0, -1])
    assert 8 <= mirrored <= 32


def test_flip_probability_is_honoured() -> None:
    labels = checker(16, 16, 4)
    never, always = augment(0, (1, 1), 16, MEAN), augment(1, (1, 1), 16, MEAN)
    assert torch.equal(never(image_of(labels), labels)[1], labels)
    assert torch.equal(always(image_of(labels), labels)[1], labels.flip(-1))
