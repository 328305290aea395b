"""Train smp's U-Net with LAM on scribbles: python examples/smp_unet.py."""

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

import blpseg_ops


class ScribbleUnet(nn.Module):
    def __init__(self, num_classes: int, weights: str | None = None) -> None:
        super().__init__()
        self.net = smp.Unet("resnet18", encoder_weights=weights)  # or "imagenet"
        self.net.segmentation_head = nn.AvgPool2d(4)  # 16 features per pixel, from stride 1 to 4
        self.classes = nn.Conv2d(16, num_classes, 1)
        self.annotation = nn.Conv2d(16, num_classes + 1, 1)
        self.lam = blpseg_ops.LocalAggregation(patch=4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # [N, K and K + 1, H/4, W/4]
        features = self.net(images)
        return self.lam(images, self.classes(features)), self.annotation(features.detach())


if __name__ == "__main__":
    size = 64
    model = ScribbleUnet(num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images = torch.randn(2, 3, size, size)
    target = torch.full((2, size, size), 3, dtype=torch.uint8)  # 3 of 3 classes: unlabeled
    for label in range(3):
        target[:, (label + 1) * size // 4, 5:-5] = label
    for step in range(5):
        blp, annotation, _ = blpseg_ops.blp_objective(*model(images), target)
        optimizer.zero_grad()
        (blp + annotation).backward()
        optimizer.step()
        print(f"step {step}: blp {blp:.3f}, annotation {annotation:.3f}")
