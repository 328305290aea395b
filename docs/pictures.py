"""Make the pictures of README, docs/method.md and docs/ops: python -m docs.pictures [NAME ...].

With names, only those pictures are made; --help lists them. The pictures `readme` and `demo-scenes`
are those of `blpseg demo`, from its folder blpseg-demo.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from torch import Tensor

import blpseg_ops
from blpseg.demo import demo
from blpseg.pictures import COLORS, color_labels, draw_scribbles
from docs import photo
from docs.photo import CLASSES, SIGMA, STRIDE, K, Photo

FOLDER = Path(__file__).parent / "images"
DEMO = Path("blpseg-demo")  # where `blpseg demo` writes
DPI = 110
BORDER = (210, 20, 150, 150)  # x, y, width, height of the zoom: the border of head and background
QUERY = (38, 50)  # row and column of the cell whose weights are shown: the cheek, near the hair


class Panel(NamedTuple):
    """One picture of a row: RGB, or numbers with a color bar."""

    title: str
    picture: np.ndarray  # [H, W, 3] uint8, or [H, W] numbers
    bar: str = ""  # what the color bar's ends mean, "low | high"
    norm: Normalize | None = None
    box: tuple[int, int, int, int] | None = None  # rectangle to draw: x, y, width, height
    mark: tuple[int, int] | None = None  # cross to draw: row, column


def save(name: str, panels: Sequence[Panel], *, legend: bool = False, side: float = 2.6) -> None:
    """Write a row of titled panels of one height, with color bars and a legend of the classes.

    Args:
        name: File name in docs/images/, without suffix.
        panels: The panels, from left to right.
        legend: Add the classes' colors.
        side: Height of the panels, in inches.
    """
    gap, top = 0.12, 0.3
    bottom = gap + (0.5 if any(panel.bar for panel in panels) else 0) + (0.35 if legend else 0)
    widths = [side * panel.picture.shape[1] / panel.picture.shape[0] for panel in panels]
    total, height = sum(widths) + gap * (len(panels) + 1), bottom + side + top
    figure = plt.figure(figsize=(total, height))

    def place(x: float, y: float, wide: float, high: float) -> Axes:
        return figure.add_axes((x / total, y / height, wide / total, high / height))

    x = gap
    for panel, width in zip(panels, widths, strict=True):
        axis = place(x, bottom, width, side)
        shown = _show(axis, panel)
        if panel.bar:
            bar = place(x + 0.05 * width, bottom - 0.18, 0.9 * width, 0.1)
            figure.colorbar(shown, cax=bar, orientation="horizontal")
            bar.tick_params(labelsize=7)
            bar.set_xlabel(panel.bar, fontsize=8, labelpad=1)
        x += width + gap
    if legend:
        handles = [
            Patch(facecolor=COLORS[label] / 255, edgecolor="black", linewidth=0.5, label=text)
            for label, text in enumerate(CLASSES)
        ]
        figure.legend(handles=handles, loc="lower center", ncols=K, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI)
    plt.close(figure)
    _write(Image.open(buffer), name)


def _write(picture: Image.Image, name: str) -> None:
    """Write a picture with 256 colors, a third of the size."""
    picture = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(FOLDER / f"{name}.png", optimize=True)


def _show(axis: Axes, panel: Panel) -> AxesImage:
    shown = axis.imshow(panel.picture, cmap="magma", norm=panel.norm, interpolation="nearest")
    axis.set_title(panel.title, fontsize=10)
    axis.set_xticks([])
    axis.set_yticks([])
    if panel.box:
        x, y, width, height = panel.box
        for color, line in (("white", 2.5), ("black", 1.0)):
            box = Rectangle((x, y), width, height, fill=False, color=color, linewidth=line)
            axis.add_patch(box)
    if panel.mark:
        row, column = panel.mark
        axis.plot(column, row, "+", color="cyan", markersize=10, markeredgewidth=2)
    return shown


@cache
def scene() -> Photo:
    """The photo with its trained network, made once."""
    return photo.make()


@cache
def smooth() -> Tensor:
    """The network's logits after LAM."""
    return blpseg_ops.lam(scene().features, scene().logits, SIGMA)


def scribbled() -> np.ndarray:
    """The photo with its scribbles."""
    return draw_scribbles(scene().image, scene().target[0].numpy(), K)


def labels(logits: Tensor) -> np.ndarray:
    """The label of every pixel, in the classes' colors."""
    size = scene().image.shape[:2]
    return color_labels(blpseg_ops.upsample_argmax(logits, size)[0].numpy())


def probabilities(logits: Tensor) -> Tensor:
    """The softmax of the resized logits, [C, H, W]."""
    size = scene().image.shape[:2]
    return F.interpolate(logits, size=size, mode="bilinear")[0].softmax(0)


def annotated() -> np.ndarray:
    """The probability that somebody scribbles on a pixel, as any class."""
    return (1 - probabilities(scene().annotation)[K]).numpy()


def blp_weights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """P and q of the predicted label and the BLP weight (1 - q p)^2, each [H, W]."""
    p, q = probabilities(scene().logits), probabilities(scene().annotation)
    predicted = p.argmax(0, keepdim=True)
    p_label, q_label = p.gather(0, predicted)[0], q.gather(0, predicted)[0]
    return p_label.numpy(), q_label.numpy(), (1 - q_label * p_label).square().numpy()


def zoom(picture: np.ndarray, box: tuple[int, int, int, int] = BORDER) -> np.ndarray:
    """A part of a picture."""
    x, y, width, height = box
    return picture[y : y + height, x : x + width]


def weights(features: Tensor, *, sigma: float = SIGMA, radius: int | None = None) -> np.ndarray:
    """P_ab of every key a for the query QUERY: the gradient of the query's output by the values."""
    values = torch.zeros_like(features[:, :1]).requires_grad_()
    out = blpseg_ops.lam(features, values, sigma, radius=radius)
    (gradient,) = torch.autograd.grad(out[0, 0][QUERY], values)
    return gradient[0, 0].numpy()


def scaled(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """A rectangle of cells as a rectangle of photo pixels."""
    x, y, width, height = (STRIDE * side for side in box)
    return x, y, width, height


UNIT = Normalize(0, 1)


@cache
def demo_folder() -> Path:
    """The folder of `blpseg demo`, which is run if there is none: 5 minutes."""
    if not DEMO.exists():
        demo(output=DEMO)
    return DEMO


def readme() -> None:
    """Three photographs, their scribbles, and what both networks of the demo make of them."""
    # In full color: 256 colors would change those of small classes, and band the photographs.
    Image.open(demo_folder() / "photos.png").save(FOLDER / "readme.png", optimize=True)


def demo_scenes() -> None:
    """Built-in scenes, and what both networks of the demo make of them."""
    _write(Image.open(demo_folder() / "scenes.png"), "demo-scenes")


def method_annotation() -> None:
    """The annotation map and the BLP loss's weights."""
    _, _, weight = blp_weights()
    save(
        "method-annotation",
        [
            Panel("scribbles", scribbled()),
            Panel("annotation head", annotated(), "P(somebody scribbles here)", UNIT),
            Panel("BLP weight (1 - q p)^2", weight, "0: counts little, 1: counts fully", UNIT),
        ],
    )


def method_weights() -> None:
    """LAM's weight as the product of nearness and similarity."""
    features = scene().features
    crop = (QUERY[1] - 28, QUERY[0] - 28, 56, 56)
    near, alike = weights(torch.zeros_like(features)), weights(features, sigma=1e6)
    both = weights(features)
    center = (28, 28)
    save(
        "method-weights",
        [
            Panel(
                "query pixel", zoom(scene().image, scaled(crop)), mark=(28 * STRIDE, 28 * STRIDE)
            ),
            *(
                Panel(title, zoom(part / part.max(), crop), "weight / largest", UNIT, mark=center)
                for title, part in (
                    ("near: Gaussian, sigma 6", near),
                    ("alike: features", alike),
                    ("LAM: the product", both),
                )
            ),
        ],
    )


def method_arguments() -> None:
    """What sigma, radius and scale change."""
    features = scene().features
    crop = (QUERY[1] - 28, QUERY[0] - 28, 56, 56)
    parts = {
        "sigma 2": weights(features, sigma=2.0),
        "sigma 6": weights(features),
        "sigma 18": weights(features, sigma=18.0),
        "sigma 18, radius 8": weights(features, sigma=18.0, radius=8),
        "sigma 18, scale 1/9": weights(features / 3, sigma=18.0),
    }
    save(
        "method-arguments",
        [
            Panel(name, zoom(part / part.max(), crop), "weight / largest", UNIT, mark=(28, 28))
            for name, part in parts.items()
        ],
        side=2.1,
    )


def method_eps() -> None:
    """What eps does to an output: the factor Z / (Z + eps T)."""
    torch.manual_seed(0)
    module = blpseg_ops.LocalAggregation(sigma=SIGMA)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = (torch.from_numpy(scene().image) / 255 - mean) / std
    with torch.no_grad():
        features = module.embed(image.permute(2, 0, 1)[None])
    ones = torch.ones_like(features[:, :1])
    cases = {
        "eps 1e-7": (features, 1e-7),
        "eps 1e-4": (features, 1e-4),
        "eps 1e-7, features x 2": (2 * features, 1e-7),
    }
    save(
        "method-eps",
        [
            Panel("photo", scene().image),
            *(
                Panel(
                    title,
                    blpseg_ops.lam(embedding, ones, SIGMA, eps=eps)[0, 0].numpy(),
                    "Z / (Z + eps T): factor on the output",
                    UNIT,
                )
                for title, (embedding, eps) in cases.items()
            ),
        ],
    )


def method_gradient() -> None:
    """Where the gradient of a first step arrives, without LAM and with it."""
    without, with_lam = (_gradient(aggregate) for aggregate in (False, True))
    norm = LogNorm(1e-4, 1)
    save(
        "method-gradient",
        [
            Panel("scribbles", scribbled()),
            *(
                Panel(title, np.maximum(part / part.max(), 1e-4), "gradient / largest", norm)
                for title, part in (
                    ("gradient without LAM", without),
                    ("gradient through LAM", with_lam),
                )
            ),
        ],
    )


def _gradient(aggregate: bool) -> np.ndarray:  # [h, w]
    logits = torch.zeros_like(scene().logits).requires_grad_()
    out = blpseg_ops.lam(scene().features, logits, SIGMA) if aggregate else logits
    loss = blpseg_ops.blp_loss(out, scene().annotation, scene().target, gamma=0.0)
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient[0].norm(dim=0).numpy()


def op_lam() -> None:
    """Labels before and after LAM, with a border enlarged."""
    before, after = labels(scene().logits), labels(smooth())
    save(
        "op-lam",
        [
            Panel("photo, scribbles", scribbled(), box=BORDER),
            Panel("labels before lam", before, box=BORDER),
            Panel("labels after lam", after, box=BORDER),
            Panel("the border, before", zoom(before)),
            Panel("the border, after", zoom(after)),
        ],
        legend=True,
        side=2.2,
    )


COARSE = 16  # photo pixels per cell of the logits that queries upsample


def _coarse_logits() -> Tensor:  # [1, K, H/16, W/16]
    return F.avg_pool2d(scene().logits, COARSE // STRIDE)


def _upsampled(name: str, title: str, logits: Tensor) -> None:
    resized = labels(_coarse_logits())
    sharp = labels(logits)
    save(
        name,
        [
            Panel("photo", scene().image, box=BORDER),
            Panel("stride 16, resized", resized, box=BORDER),
            Panel(title, sharp, box=BORDER),
            Panel("the border, resized", zoom(resized)),
            Panel(f"the border, {title}", zoom(sharp)),
        ],
        legend=True,
        side=2.2,
    )


def op_lam_queries() -> None:
    """Logits at stride 16, upsampled to stride 4 by queries of 4 x 4 patches."""
    queries = scene().features
    keys = F.avg_pool2d(queries, COARSE // STRIDE)
    logits = blpseg_ops.lam(keys, _coarse_logits(), 1.5, queries=queries)
    _upsampled("op-lam-queries", "lam with queries", logits)


def op_joint_bilateral() -> None:
    """Logits at stride 16, upsampled to the photo's size with the photo as guide."""
    guide = torch.from_numpy(scene().image).permute(2, 0, 1)[None] / 255
    logits = blpseg_ops.joint_bilateral(guide, _coarse_logits(), 1.0, 0.1, radius=3)
    _upsampled("op-joint_bilateral", "joint_bilateral", logits)


def op_blp_loss() -> None:
    """p, q and the weight of the predicted label."""
    p, q, weight = blp_weights()
    save(
        "op-blp_loss",
        [
            Panel("photo, scribbles", scribbled()),
            Panel("p: is the network sure?", p, "0: unsure, 1: sure", UNIT),
            Panel("q: do people scribble here?", q, "0: never, 1: always", UNIT),
            Panel("weight (1 - q p)^2", weight, "0: counts little, 1: counts fully", UNIT),
        ],
    )


def op_annotation_loss() -> None:
    """The predicted probability of annotation."""
    save(
        "op-annotation_loss",
        [
            Panel("photo, scribbles", scribbled()),
            Panel("annotation head", annotated(), "P(somebody scribbles here)", UNIT),
        ],
    )


def op_pseudo_labels() -> None:
    """Pseudo labels at three thresholds."""
    present = torch.ones(1, K, dtype=torch.bool)
    sure = [
        Panel(
            f"threshold {threshold}",
            color_labels(
                blpseg_ops.pseudo_labels(smooth(), scene().target, present, threshold=threshold)[
                    0
                ].numpy()
            ),
        )
        for threshold in (0.5, 0.9, 0.99)
    ]
    save("op-pseudo_labels", [Panel("photo, scribbles", scribbled()), *sure], legend=True)


def op_upsample_argmax() -> None:
    """Labels before and after resizing, on a part of the photo."""
    box = (340, 20, 160, 240)
    coarse = color_labels(scene().logits.argmax(1)[0].byte().numpy())
    coarse = coarse.repeat(STRIDE, 0).repeat(STRIDE, 1)
    save(
        "op-upsample_argmax",
        [
            Panel("part of the photo", zoom(scene().image, box)),
            Panel("argmax at stride 4", zoom(coarse, box)),
            Panel("upsample_argmax", zoom(labels(scene().logits), box)),
        ],
        legend=True,
        side=3.6,
    )


def op_blp_objective() -> None:
    """The two targets of a self-training step."""
    target = scene().target
    present = torch.ones(1, K, dtype=torch.bool)
    step = blpseg_ops.blp_objective(smooth(), scene().annotation, target, class_present=present)
    assert step.pseudo_labels is not None
    scribbles = np.where(target[0] == K, 255, target[0])
    save(
        "op-blp_objective",
        [
            Panel("photo, scribbles", scribbled()),
            Panel("target of annotation_loss", color_labels(scribbles)),
            Panel("target of blp_loss", color_labels(step.pseudo_labels[0].numpy())),
        ],
        legend=True,
    )


PICTURES: dict[str, Callable[[], None]] = {
    "readme": readme,
    "demo-scenes": demo_scenes,
    "method-annotation": method_annotation,
    "method-weights": method_weights,
    "method-arguments": method_arguments,
    "method-eps": method_eps,
    "method-gradient": method_gradient,
    "op-lam": op_lam,
    "op-lam-queries": op_lam_queries,
    "op-joint_bilateral": op_joint_bilateral,
    "op-blp_loss": op_blp_loss,
    "op-annotation_loss": op_annotation_loss,
    "op-pseudo_labels": op_pseudo_labels,
    "op-upsample_argmax": op_upsample_argmax,
    "op-blp_objective": op_blp_objective,
}


def main() -> None:
    """Make the named pictures, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PICTURES))
    for name in parser.parse_args().names or PICTURES:
        PICTURES[name]()


if __name__ == "__main__":
    main()
