"""Paint a scene: layers from back to front, and the mask of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence
from PIL import Image, ImageDraw, ImageFilter

from blpseg.data.scenes.materials import DULL, VIVID, material, noise, random_color
from blpseg.data.scenes.outlines import CLUTTER, OBJECTS, Part, blade

CLASSES: tuple[str, ...] = ("background", *OBJECTS)

_SUPERSAMPLING = 4
_BACKGROUND = 0
_FLYING = {CLASSES.index("bird"), CLASSES.index("kite")}

# Mean hues of the body and the trim, for clutter and each class; neighboring classes overlap.
_HUES = ((0.2, 0.3), (0.07, 0.09), (0.28, 0.08), (0.58, 0.12), (0.98, 0.1), (0.8, 0.15))


class Scene(NamedTuple):
    """A rendered picture and the class of each pixel."""

    image: np.ndarray  # [H, W, 3] uint8
    mask: np.ndarray  # [H, W] uint8


class _Layer(NamedTuple):
    """An object placed in the picture."""

    parts: list[Part]
    label: int
    foot: tuple[float, float]  # x, y in pixels
    height: float  # pixels
    casts_shadow: bool


class _Surroundings(NamedTuple):
    """Geometry and light that all layers of a scene have in common."""

    horizon: float  # y in pixels
    light: tuple[float, float]  # unit vector toward the light
    unit: float  # the shorter side in pixels


def _coverage(
    outlines: Sequence[tuple[np.ndarray, int]], box: tuple[int, int, int, int]
) -> np.ndarray:  # [bottom - top, right - left] in 0..1
    """Return how much of each pixel the polygons cover, in a box (left, top, right, bottom).

    Polygons are filled in order with their value, 0 or 1; a later one overwrites an earlier one.
    """
    left, top, right, bottom = box
    size = ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING)
    stencil = Image.new("L", size)
    draw = ImageDraw.Draw(stencil)
    for outline, value in outlines:
        points = (outline - (left, top)) * _SUPERSAMPLING - 0.5
        draw.polygon(points.ravel().tolist(), fill=255 * value)
    return np.asarray(stencil.reduce(_SUPERSAMPLING), np.float32) / 255


def _shading(coverage: np.ndarray, light: tuple[float, float], unit: float) -> np.ndarray:
    """Return shading in -1..1 that makes a flat shape look round.

    Blurred edges that face the light are positive, the others negative.
    """
    reach = max(1, round(unit * 0.06))
    flat = Image.fromarray((coverage * 255).astype(np.uint8))
    soft = np.asarray(flat.filter(ImageFilter.GaussianBlur(1.2 * reach)), np.float32) / 255
    shift = (round(light[1] * reach), round(light[0] * reach))
    return np.roll(soft, shift, (0, 1)) - np.roll(soft, (-shift[0], -shift[1]), (0, 1))


def _paint(
    image: np.ndarray,  # [H, W, 3] float32 in 0..1, changed in place
    mask: np.ndarray,  # [H, W] uint8, changed in place
    layer: _Layer,
    surroundings: _Surroundings,
    rng: Generator,
) -> None:
    """Draw one layer onto the picture, and its label onto the mask."""
    spin = rng.normal(0, 0.4 if layer.label in _FLYING else 0.08)
    flip = rng.choice((-1, 1))
    turn = np.array([[np.cos(spin), np.sin(spin)], [-np.sin(spin), np.cos(spin)]])
    placed = [
        (p.outline * (flip, 1) @ turn * layer.height + layer.foot, p.trim) for p in layer.parts
    ]
    corners = np.concatenate([outline for outline, _ in placed])
    size = np.array(mask.shape[::-1])
    low = np.clip(np.floor(corners.min(0)) - 2, 0, size).astype(int)
    high = np.clip(np.ceil(corners.max(0)) + 3, 0, size).astype(int)
    if (low >= high).any():
        return
    window = (slice(low[1], high[1]), slice(low[0], high[0]))
    shape, box = (high[1] - low[1], high[0] - low[0]), (low[0], low[1], high[0], high[1])
    alpha = _coverage([(outline, 1) for outline, _ in placed], box)
    if layer.casts_shadow:
        _darken_ground(image, layer, float(np.ptp(corners[:, 0])))
    hue, trim_hue = _HUES[layer.label]
    saturation = VIVID if layer.label else DULL
    paint = material(rng, shape, layer.height, hue if layer.label else rng.uniform(), saturation)
    if any(trim for _, trim in placed):
        trimmed = _coverage([(outline, int(trim)) for outline, trim in placed], box)[..., None]
        trim = material(rng, shape, layer.height, trim_hue, saturation)
        paint = paint + trimmed * (trim - paint)
    relief = _shading(alpha, surroundings.light, layer.height)
    paint = paint * (1 + rng.uniform(0.3, 0.7) * relief[..., None])
    image[window] += alpha[..., None] * (paint - image[window])
    mask[window][alpha >= 0.5] = layer.label


def _darken_ground(image: np.ndarray, layer: _Layer, width: float) -> None:
    """Lay a soft elliptic shadow under the feet of a layer."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    across, down = (x - layer.foot[0]) / (0.45 * width), (y - layer.foot[1]) / (0.08 * layer.height)
    image *= 1 - 0.45 * np.exp(-(across**2) - down**2)[..., None]


def _backdrop(rng: Generator, shape: tuple[int, int], surroundings: _Surroundings) -> np.ndarray:
    """Return [H, W, 3]: sky over hills over ground, or one material (a wall, a meadow)."""
    unit = surroundings.unit
    hue = rng.choice((0.25, 0.09, 0.13))
    ground = material(rng, shape, unit * rng.uniform(0.3, 1.2), hue, DULL)
    if rng.random() < 0.2:
        return ground.astype(np.float32)
    y = np.arange(shape[0])[:, None, None]
    sky = random_color(rng, 0.58, DULL) * 0.4 + 0.55
    image = sky + (rng.uniform(-0.3, 0.3) * (y / shape[0]) + np.zeros((*shape, 1)))
    image = (
        image + 0.06 * rng.uniform(0, 2) * noise(rng, shape, (0.15 * unit, 0.35 * unit))[..., None]
    )
    for rise in (rng.uniform(0.03, 0.2), 0.0):
        ridge = 0.06 * unit * noise(rng, (1, shape[1]), (1, 0.4 * unit)) * (1 if rise else 0.2)
        below = np.clip(y[..., 0] - (surroundings.horizon - rise * unit + ridge) + 0.5, 0, 1)[
            ..., None
        ]
        land = (
            ground if not rise else material(rng, shape, 0.5 * unit, 0.3, DULL) * 0.5 + 0.5 * image
        )
        image = image + below * (land - image)
    return image.astype(np.float32)


def _place_object(
    rng: Generator,
    label: int,
    shape: tuple[int, int],
    surroundings: _Surroundings,
    span: tuple[float, float],
) -> _Layer:
    """Place an object of a class at random; the lower it stands, the nearer and larger it is.

    `span` limits the x of its feet, as shares of the picture's width.
    """
    unit, (rows, columns) = surroundings.unit, shape
    x = rng.uniform(*span) * columns
    if label == _BACKGROUND:
        parts, height = CLUTTER[rng.integers(len(CLUTTER))](rng), rng.uniform(0.06, 0.16)
        return _Layer(parts, label, (x, rng.uniform(0.1, 1.05) * rows), height * unit, False)
    parts = OBJECTS[CLASSES[label]](rng)
    if label in _FLYING:
        height = rng.uniform(0.3, 0.68) * unit
        return _Layer(parts, label, (x, rng.uniform(0.35, 1.0) * rows), height, False)
    depth = rng.uniform(0, 1)
    y = surroundings.horizon + (0.2 + 0.8 * depth) * (0.98 * rows - surroundings.horizon)
    return _Layer(parts, label, (x, y), rng.uniform(0.36, 0.6) * (0.75 + 0.5 * depth) * unit, True)


def _blades(rng: Generator, shape: tuple[int, int], surroundings: _Surroundings) -> list[_Layer]:
    """Return thin grass in front of everything, at the lower edge of the picture."""
    unit = surroundings.unit
    patch = rng.uniform(0, shape[1])
    return [
        _Layer(
            blade(rng),
            _BACKGROUND,
            (patch + rng.normal(0, 0.15) * unit, 1.02 * shape[0]),
            height,
            False,
        )
        for height in rng.uniform(0.08, 0.28, rng.integers(2, 8)) * unit
    ]


def _photograph(rng: Generator, image: np.ndarray, surroundings: _Surroundings) -> np.ndarray:
    """Add uneven tinted light, contrast and sensor noise, as a camera does; return uint8."""
    rows, columns = image.shape[:2]
    y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    towards = surroundings.light[0] * x + surroundings.light[1] * y
    slope, patches = rng.uniform(0, 0.25), rng.uniform(0, 0.12)
    light = (
        1 + slope * towards + patches * noise(rng, (rows, columns), (0.4 * surroundings.unit,) * 2)
    )
    tint = rng.uniform(0.75, 1.1) * (1 + rng.normal(0, 0.05, 3))
    exposed = np.clip(image * light[..., None] * tint, 0, 1) ** rng.uniform(0.8, 1.25)
    exposed += rng.uniform(0.005, 0.02) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(exposed, 0, 1) * 255 + 0.5).astype(np.uint8)


def image_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    shape = (size, size) if isinstance(size, int | np.integer) else tuple(size)
    if len(shape) != 2 or min(shape) < 16:
        raise ValueError(
            f"size must be an int or (height, width) of at least 16 pixels, got {size!r}"
        )
    return shape


def render_scene(seed: int | Sequence[int], size: int | tuple[int, int] = 128) -> Scene:
    """Render one scene; the same seed and size give the same scene.

    The positions of the objects hardly depend on the size.

    Args:
        seed: A non-negative int or a sequence of them, as `numpy.random.SeedSequence` takes it.
        size: Side, or (height, width), in pixels; at least 16.

    Returns:
        The image and its mask, both of the given size.

    Raises:
        ValueError: `size` is not an int or a pair of ints of at least 16.
    """
    shape = image_shape(size)
    # One random stream per purpose: the positions do not change with the numbers a texture draws.
    layout, backdrop, camera, *paints = map(np.random.default_rng, SeedSequence(seed).spawn(36))
    unit, angle = float(min(shape)), layout.uniform(-np.pi, 0)
    horizon = layout.uniform(0.2, 0.6) * shape[0]
    surroundings = _Surroundings(horizon, (np.cos(angle), np.sin(angle)), unit)
    image, mask = _backdrop(backdrop, shape, surroundings), np.zeros(shape, np.uint8)
    clutter = [
        _place_object(layout, _BACKGROUND, shape, surroundings, (0.05, 0.95))
        for _ in range(layout.integers(1, 6))
    ]
    labels = layout.integers(1, len(CLASSES), layout.choice((1, 2, 3), p=(0.25, 0.45, 0.3)))
    # Each object has a strip of the picture to itself, so that overlaps are few.
    strips = layout.permutation(len(labels)) / len(labels)
    inset = 0.3 / len(labels)
    objects = [
        _place_object(layout, int(label), shape, surroundings, (strip + inset, strip + 2.3 * inset))
        for label, strip in zip(labels, strips, strict=True)
    ]
    objects.sort(key=lambda layer: layer.foot[1])
    front = _blades(layout, shape, surroundings) if layout.random() < 0.4 else []
    for layer, rng in zip([*clutter, *objects, *front], paints, strict=False):
        _paint(image, mask, layer, surroundings, rng)
    return Scene(_photograph(camera, image, surroundings), mask)
