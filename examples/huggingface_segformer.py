"""Train SegFormer with LAM on scribbles: python examples/huggingface_segformer.py."""

import torch
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import blpseg_ops


class ScribbleSegformer(nn.Module):
    def __init__(self, num_classes: int, weights: str | None = None) -> None:
        super().__init__()
        segformer = SegformerForSemanticSegmentation  # weights: for instance "nvidia/mit-b0"
        self.net = segformer.from_pretrained(weights) if weights else segformer(SegformerConfig())
        self.net.decode_head.classifier = nn.Identity()  # 256 features per pixel, at stride 4
        self.classes = nn.Conv2d(256, num_classes, 1)
        self.annotation = nn.Conv2d(256, num_classes + 1, 1)
        self.lam = blpseg_ops.LocalAggregation(patch=4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # [N, K and K + 1, H/4, W/4]
        features = self.net(images).logits
        return self.lam(images, self.classes(features)), self.annotation(features.detach())


if __name__ == "__main__":
    size = 64
    model = ScribbleSegformer(num_classes=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
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
