"""Train a small network to segment a disk from scribbles: python examples/plain_training.py."""

import torch
from torch import Tensor, nn

import blpseg_ops


class Network(nn.Module):
    def __init__(self, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.Conv2d(width, width, 1))
        self.classes = nn.Conv2d(width, num_classes, 1)
        self.annotation = nn.Conv2d(width, num_classes + 1, 1)
        self.lam = blpseg_ops.LocalAggregation(dim=32, patch=4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # [N, K and K + 1, H/4, W/4]
        features = self.body(images)
        return self.lam(images, self.classes(features)), self.annotation(features.detach())


if __name__ == "__main__":
    model = Network(num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    place = torch.arange(96) - 48
    mask = place[:, None] ** 2 + place**2 < 32**2
    images = torch.randn(1, 3, 96, 96) + mask * torch.tensor([1.5, 0.0, -1.5]).view(3, 1, 1)
    target = torch.full((1, 96, 96), 2, dtype=torch.uint8)  # 2 of 2 classes: unlabeled
    target[:, 2, 5:-5] = 0
    target[:, 48, 32:-32] = 1
    for step in range(60):
        blp, annotation, _ = blpseg_ops.blp_objective(*model(images), target)
        optimizer.zero_grad()
        (blp + annotation).backward()
        optimizer.step()
        if step % 10 == 9:
            print(f"step {step}: blp {blp:.3f}, annotation {annotation:.3f}")
    labels = blpseg_ops.upsample_argmax(model(images)[0], (96, 96))
    print(f"{(labels == mask).float().mean():.1%} of the pixels are right")
