"""Makes the pictures of docs/ops/ from a photo's logits: python -m docs.pictures.

The photo comes with scikit-image, the scribbles are drawn below, and the logits are of a small
network trained on them here, on the CPU, with nothing but blpseg_ops: no picture is retouched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import skimage.data
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

import blpseg_ops
from blpseg.pictures import color_labels, contact_sheet, draw_scribbles, heat_map

FOLDER = Path(__file__).parent / "images"
CLASSES = ("background", "person", "flag", "shuttle", "helmet")
K = len(CLASSES)
STRIDE = 4
SCRIBBLES = {  # class to lines of (x, y), on the photo of 512 x 512
    0: [
        [(110, 60), (120, 170)],
        [(310, 40), (340, 200), (320, 170)],
        [(480, 60), (490, 230)],
        [(400, 310), (500, 320)],
    ],
    1: [[(230, 50), (230, 150)], [(90, 310), (120, 460), (200, 440)], [(290, 320), (220, 300)]],
    2: [[(25, 30), (45, 190), (25, 330)], [(10, 420), (15, 490)]],
    3: [[(415, 30), (420, 130)], [(395, 110), (400, 230)], [(445, 60), (445, 210)]],
    4: [[(320, 430), (400, 390), (470, 470)], [(370, 490), (430, 500)]],
}


class Pixels(nn.Module):
    """Class and annotation logits [K and K + 1, h, w] of a photo, from few layers."""

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


def scribbles(size: int) -> Tensor:
    """Draw the lines above: [1, size, size] uint8, K where there are none."""
    canvas = Image.new("L", (size, size), K)
    draw = ImageDraw.Draw(canvas)
    for label, lines in SCRIBBLES.items():
        for line in lines:
            draw.line(line, fill=label, width=3)
    return torch.from_numpy(np.array(canvas))[None]


def train(inputs: Tensor, target: Tensor, steps: int = 300) -> tuple[Tensor, Tensor]:
    """Train on one photo; return its logits [1, K, h, w] and annotation logits [1, K + 1, h, w]."""
    torch.manual_seed(0)
    network = Pixels()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for _ in range(steps):
        losses = blpseg_ops.blp_objective(*network(inputs), target)
        optimizer.zero_grad()
        (losses.blp_loss + losses.annotation_loss).backward()
        optimizer.step()
    with torch.no_grad():
        return network(inputs)


def probabilities(logits: Tensor, size: int) -> Tensor:
    """The softmax of resized logits [C, size, size], as the losses have it."""
    return F.interpolate(logits, size=(size, size), mode="bilinear")[0].softmax(0)


def save(name: str, columns: dict[str, np.ndarray], classes: tuple[str, ...] = ()) -> None:
    """Write a row of titled pictures, in a palette of 256 colours."""
    sheet = contact_sheet({title: [row] for title, row in columns.items()}, classes=classes)
    picture = Image.fromarray(sheet).quantize(256, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"op-{name}.png", optimize=True)


def main() -> None:
    """Make them all."""
    photo = skimage.data.astronaut()
    size = len(photo)
    colors = torch.from_numpy(photo).permute(2, 0, 1)[None] / 127.5 - 1
    place = torch.linspace(-1, 1, size)
    places = torch.stack(torch.meshgrid(place, place, indexing="ij"))[None]
    target = scribbles(size)
    logits, annotation = train(torch.cat([colors, places], 1), target)
    p, q = probabilities(logits, size), probabilities(annotation, size)

    patches = F.pixel_unshuffle(F.pad(colors, (0, 0, 0, 0, 0, 1), value=1.0), STRIDE)
    features = 6 * F.normalize(patches, dim=1)  # of one length: the most alike is a pixel itself
    smooth = blpseg_ops.lam(features, logits, sigma=6.0)
    drawn = draw_scribbles(photo, target[0].numpy(), K)

    def labels(of: Tensor) -> np.ndarray:
        return color_labels(blpseg_ops.upsample_argmax(of, (size, size))[0].numpy())

    scene = {"photo, scribbles": drawn}
    save("lam", {**scene, "logits": labels(logits), "after lam": labels(smooth)}, CLASSES)

    dense = p.argmax(0, keepdim=True)
    of_label, annotated = p.gather(0, dense)[0], q.gather(0, dense)[0]
    save(
        "blp_loss",
        {
            **scene,
            "p of the label": heat_map(of_label.numpy()),
            "q of the label": heat_map(annotated.numpy()),
            "(1 - q p)^2": heat_map((1 - annotated * of_label).square().numpy()),
        },
    )
    save("annotation_loss", {**scene, "1 - q of nobody": heat_map((1 - q[K]).numpy())})
    present = torch.ones(1, K, dtype=torch.bool)
    sure = {
        f"threshold {threshold}": color_labels(
            blpseg_ops.pseudo_labels(smooth, target, present, threshold=threshold)[0].numpy()
        )
        for threshold in (0.5, 0.9, 0.99)
    }
    save("pseudo_labels", {**scene, **sure}, CLASSES)

    def closer(picture: np.ndarray) -> np.ndarray:
        return picture[20:260, 340:500]

    coarse = color_labels(logits.argmax(1)[0].byte().numpy()).repeat(STRIDE, 0).repeat(STRIDE, 1)
    save(
        "upsample_argmax",
        {
            "photo": closer(photo),
            "argmax, stride 4": closer(coarse),
            "upsample_argmax": closer(labels(logits)),
        },
    )
    step = blpseg_ops.blp_objective(smooth, annotation, target, class_present=present)
    assert step.pseudo_labels is not None
    save(
        "blp_objective",
        {
            **scene,
            "annotation's target": color_labels(np.where(target[0] == K, 255, target[0])),
            "BLP's target": color_labels(step.pseudo_labels[0].numpy()),
        },
        CLASSES,
    )


if __name__ == "__main__":
    main()
