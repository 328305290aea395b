"""A photo, scribbles on it, and a small network trained on them: the material of the pictures.

The photo comes with scikit-image. The network is trained here, on the CPU, with nothing but torch
and blpseg_ops, so every picture shows what the ops really compute.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

import blpseg_ops

CLASSES = ("background", "person", "flag", "shuttle", "helmet")
K = len(CLASSES)
STRIDE = 4  # photo pixels per cell of the logits
SIGMA = 6.0
SCRIBBLES = {  # class to lines of (x, y), on the photo of 512 x 512
    0: [
        [(110, 60), (120, 170)],
        [(310, 40), (340, 200), (320, 170)],
        [(480, 60), (490, 230)],
        [(400, 310), (500, 320)],
    ],
    1: [
        [(230, 50), (230, 150)],
        [(165, 95), (185, 60), (270, 45), (295, 95)],
        [(150, 215), (200, 245), (255, 225)],
        [(90, 310), (120, 460), (200, 440)],
        [(290, 320), (220, 300)],
    ],
    2: [[(25, 30), (45, 190), (25, 330)], [(10, 420), (15, 490)]],
    3: [[(415, 30), (420, 130)], [(395, 110), (400, 230)], [(445, 60), (445, 210)]],
    4: [[(320, 430), (400, 390), (470, 470)], [(370, 490), (430, 500)]],
}


class Photo(NamedTuple):
    """The photo and what the trained network says about it."""

    image: np.ndarray  # [H, W, 3] uint8
    target: Tensor  # [1, H, W] uint8, K where unlabeled
    features: Tensor  # [1, 48, H/4, W/4], in which LAM compares cells
    logits: Tensor  # [1, K, H/4, W/4], before LAM
    annotation: Tensor  # [1, K + 1, H/4, W/4]


class PixelNetwork(nn.Module):
    """Predict class and annotation logits [N, K and K + 1, h, w] with a few layers."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(5, width, STRIDE, STRIDE),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=2, dilation=2),
            nn.GELU(),
        )
        self.classes = nn.Conv2d(width, K, 1)
        self.annotation = nn.Sequential(
            nn.Conv2d(width, width, 1), nn.GELU(), nn.Conv2d(width, K + 1, 1)
        )

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(inputs)
        return self.classes(features), self.annotation(features.detach())


def make() -> Photo:
    """Train on the photo's scribbles for 300 steps."""
    image = skimage.data.astronaut()
    size = len(image)
    colors = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
    line = torch.linspace(-1, 1, size)
    positions = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None]
    target = _draw_scribbles(size)
    logits, annotation = _train(torch.cat([colors, positions], 1), target)
    patches = F.pixel_unshuffle(colors, STRIDE)
    features = 6 * F.normalize(patches, dim=1)  # one length: a cell is most similar to itself
    return Photo(image, target, features, logits, annotation)


def _draw_scribbles(size: int) -> Tensor:
    canvas = Image.new("L", (size, size), K)
    draw = ImageDraw.Draw(canvas)
    for label, lines in SCRIBBLES.items():
        for line in lines:
            draw.line(line, fill=label, width=3)
    return torch.from_numpy(np.array(canvas))[None]


def _train(inputs: Tensor, target: Tensor, steps: int = 300) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    network = PixelNetwork()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(steps):
        losses = blpseg_ops.blp_objective(*network(inputs), target)
        optimizer.zero_grad()
        (losses.blp_loss + losses.annotation_loss).backward()
        optimizer.step()
    with torch.no_grad():
        return network(inputs)
