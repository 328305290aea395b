"""The built-in data set: procedural scenes with exact masks, any number of them from a seed.

A scene is a stack of layers painted back to front: a backdrop, clutter (background by definition),
a few objects and thin blades of grass before them. An object is a list of polygons with a thick
body and thin parts. Every layer, clutter included, takes its texture from one shared bank, and the
classes' hues overlap, so that neither texture nor colour alone tells the class.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import imgviz
import numpy as np
from numpy.random import Generator, SeedSequence
from PIL import Image, ImageDraw, ImageFilter

from blpseg.data.scribbles import ScribbleOptions, simulate_scribbles

CLASSES: tuple[str, ...] = ("background", "beast", "tree", "bird", "jug", "kite")

_SUPERSAMPLING = 4
_CLUTTER = 0


class Scene(NamedTuple):
    """A rendered picture and the class of each of its pixels."""

    image: np.ndarray  # [H, W, 3] uint8
    mask: np.ndarray  # [H, W] uint8


class _Part(NamedTuple):
    """A polygon in the object's own frame: height about 1, y down, feet at the origin."""

    outline: np.ndarray  # [P, 2] x, y
    trim: bool = False  # painted with the object's second material


class _Layer(NamedTuple):
    """An object placed in the picture."""

    parts: list[_Part]
    label: int
    foot: tuple[float, float]  # x, y in pixels
    height: float  # pixels
    casts_shadow: bool


class _Surroundings(NamedTuple):
    """What all the layers of a scene share."""

    horizon: float  # y in pixels
    light: tuple[float, float]  # unit vector towards the light
    unit: float  # the shorter side in pixels


# --- outlines -------------------------------------------------------------------------------------


def _blob(
    rng: Generator,
    x: float,
    y: float,
    rx: float,
    ry: float,
    lumps: float = 0.15,
    harmonics: int = 4,
) -> np.ndarray:  # [48, 2]
    """A closed curve around (x, y): an ellipse with random low harmonics."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    order = np.arange(2, 2 + harmonics)[:, None]
    waves = np.cos(order * angle + rng.uniform(0, 2 * np.pi, (harmonics, 1)))
    radius = 1 + lumps * (rng.normal(0, 1, (harmonics, 1)) / order * waves).sum(0)
    return np.stack([x + rx * radius * np.cos(angle), y + ry * radius * np.sin(angle)], axis=1)


def _limb(controls: Sequence[tuple[float, float]], start: float, end: float) -> np.ndarray:
    """A tapering stroke of the given widths along the Bezier curve of the control points."""
    t = np.linspace(0, 1, 20)[:, None]
    curve = np.array(controls, float)[:, None] + 0 * t  # [controls, 20, 2]
    while len(curve) > 1:
        curve = (1 - t) * curve[:-1] + t * curve[1:]
    spine = curve[0]
    tangent = np.gradient(spine, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    normal = tangent[:, ::-1] * (-1, 1)
    side = normal * (start + (end - start) * t) / 2
    tip, tail = spine[-1:] + tangent[-1:] * end / 2, spine[:1] - tangent[:1] * start / 2
    return np.concatenate([tail, spine + side, tip, (spine - side)[::-1]])


def _beast(rng: Generator) -> list[_Part]:
    """A four-legged animal: barrel body; thin legs, tail and, now and then, horns."""
    leg, length, girth = rng.uniform(0.28, 0.5), rng.uniform(0.34, 0.5), rng.uniform(0.15, 0.24)
    width = rng.uniform(0.045, 0.075)
    back = -leg - girth
    parts = []
    for hip in (-length * 0.75, -length * 0.5, length * 0.5, length * 0.78):
        knee, foot = hip + rng.normal(0, 0.05), hip + rng.normal(0, 0.07)
        stance = [(hip, back + 0.05), (knee, -leg / 2), (foot, 0)]
        parts.append(_Part(_limb(stance, 2 * width, width)))
    rump, sway = (-length * 0.9, back - girth * 0.4), rng.uniform(-0.4, 0.3)
    tail = [rump, (-length - 0.15, back - girth), (-length - rng.uniform(0.1, 0.3), back + sway)]
    parts.append(_Part(_limb(tail, 0.05, 0.03)))
    parts.append(_Part(_blob(rng, 0, back, length, girth)))
    head = (length + rng.uniform(0.08, 0.25), back - girth - rng.uniform(0.0, 0.35))
    neck = [(length * 0.7, back), ((length + head[0]) / 2, head[1] / 2 + back / 2), head]
    parts.append(_Part(_limb(neck, girth * 1.2, 0.12)))
    parts.append(_Part(_blob(rng, head[0] + 0.05, head[1], rng.uniform(0.12, 0.17), 0.085)))
    trim = bool(rng.random() < 0.5)
    for lean in (-0.06, 0.02):
        ear = [(head[0], head[1] - 0.04), (head[0] + lean, head[1] - rng.uniform(0.14, 0.26))]
        parts.append(_Part(_limb(ear, 0.05, 0.02), trim))
    return parts


def _tree(rng: Generator) -> list[_Part]:
    """A crown, round or in tiers, on a thin trunk with bare branches."""
    base, width, lean = rng.uniform(-0.6, -0.4), rng.uniform(0.05, 0.1), rng.normal(0, 0.06)
    parts = [
        _Part(_limb([(0, 0), (0, base / 2), (lean, base - 0.2)], width, width * 0.6), trim=True)
    ]
    for _ in range(rng.integers(0, 4)):
        y, reach = rng.uniform(base, base * 0.6), rng.choice((-1, 1)) * rng.uniform(0.18, 0.34)
        branch = [(0, y), (reach * 0.7, y), (reach, y - rng.uniform(0.1, 0.25))]
        parts.append(_Part(_limb(branch, 0.045, 0.02), trim=True))
    if rng.random() < 0.35:
        tiers, spread = rng.integers(2, 5), rng.uniform(0.2, 0.34)
        for y in np.linspace(base + 0.05, -0.75, tiers):
            half, top = spread * (y - 0.2) / (base - 0.2) * (1.4 + y), y - 0.28
            parts.append(_Part(np.array([(lean - half, y), (lean, top), (lean + half, y)])))
    else:
        for _ in range(rng.integers(1, 5)):
            x, y = lean + rng.normal(0, 0.1), rng.uniform(-0.75, base - 0.15)
            size = rng.uniform(0.16, 0.26)
            parts.append(_Part(_blob(rng, x, y, size * rng.uniform(1, 1.3), size, 0.2, 9)))
    return parts


def _bird(rng: Generator) -> list[_Part]:
    """A drop-shaped body with beak and fan tail, standing on thin legs or with its wings out."""
    girth, nod = rng.uniform(0.15, 0.21), rng.uniform(-0.1, 0.1)
    parts = []
    standing = rng.random() < 0.5
    if standing:
        for hip in (-0.03, 0.08):
            ankle = (hip + rng.normal(0, 0.03), 0)
            parts.append(
                _Part(_limb([(hip, -0.45), (hip - 0.06, -0.2), ankle], 0.045, 0.035), True)
            )
            parts.append(_Part(_limb([ankle, (ankle[0] + 0.1, 0)], 0.035, 0.02), True))
    spread = rng.uniform(0.05, 0.16)
    fan = [(-0.2, -0.5), (-0.68, -0.5 - spread + nod), (-0.72, -0.5 + spread + nod)]
    parts.append(_Part(np.array(fan)))
    beak = [(0.36, -0.74 + nod), (0.36, -0.64 + nod), (rng.uniform(0.52, 0.66), -0.66 + nod)]
    parts.append(_Part(np.array(beak), trim=True))
    parts.append(_Part(_limb([(-0.3, -0.5), (0.1, -0.45), (0.32, -0.68 + nod)], girth, 0.16)))
    parts.append(_Part(_blob(rng, 0, -0.5, 0.31, girth, 0.08)))
    parts.append(_Part(_blob(rng, 0.32, -0.69 + nod, 0.12, 0.11, 0.05)))
    wings = [(0.0, -1)] if standing else [(rng.uniform(-0.3, 0.1), -1), (rng.uniform(-0.2, 0.2), 1)]
    for sweep, up in wings:
        reach = 0.12 if standing else rng.uniform(0.4, 0.6)
        stretch = [(0.08, -0.5), (0.12, -0.5 + up * reach * 0.7), (sweep - 0.1, -0.5 + up * reach)]
        parts.append(_Part(_limb(stretch, 0.26, 0.04), trim=standing or bool(rng.random() < 0.3)))
    return parts


def _jug(rng: Generator) -> list[_Part]:
    """A turned vessel with one or two thin handles and, now and then, a spout."""
    belly, neck = rng.uniform(0.24, 0.36), rng.uniform(0.09, 0.2)
    heights = np.array([0, 0.12, rng.uniform(0.3, 0.5), 0.72, 0.86, 0.95])
    widths = np.array([rng.uniform(0.12, 0.22), belly * 0.8, belly, neck * 1.3, neck, neck * 1.35])
    y = np.linspace(0, heights[-1], 40)
    half = np.convolve(np.pad(np.interp(y, heights, widths), 3, "edge"), np.ones(7) / 7, "valid")
    body = np.stack([np.r_[half, -half[::-1]], -np.r_[y, y[::-1]]], axis=1)
    parts, thickness = [], rng.uniform(0.045, 0.07)
    bow = belly + rng.uniform(0.25, 0.5)
    for side in (1, -1)[: 1 + int(rng.random() < 0.4)]:
        handle = [
            (side * neck, -0.85),
            (side * bow, -0.95),
            (side * bow, -0.4),
            (side * belly * 0.9, -0.35),
        ]
        parts.append(_Part(_limb(handle, thickness, thickness)))
    if len(parts) == 1 and rng.random() < 0.5:
        spout = [(-belly * 0.8, -0.4), (-belly - 0.15, -0.45), (-belly - 0.2, -0.8)]
        parts.append(_Part(_limb(spout, 0.14, 0.05)))
    parts.append(_Part(body))
    if rng.random() < 0.6:
        rows = np.abs(y - rng.uniform(0.25, 0.6)) < rng.uniform(0.05, 0.15)
        band = np.stack(
            [np.r_[half[rows], -half[rows][::-1]], -np.r_[y[rows], y[rows][::-1]]], axis=1
        )
        parts.append(_Part(band, trim=True))
    return parts


def _kite(rng: Generator) -> list[_Part]:
    """A four-cornered sail with two panels and a long thin tail with bows."""
    half, cross = rng.uniform(0.24, 0.38), rng.uniform(-0.82, -0.66)
    top, right, bottom, left = np.array([(0, -1), (half, cross), (0, -0.35), (-half, cross)])
    middle = np.array([0, cross])
    sway = rng.uniform(-0.35, 0.35, 2)
    tail = [(0, -0.38), (sway[0], -0.2), (sway[1], 0.05), (sway.sum() / 2, 0.25)]
    parts = [_Part(_limb(tail, 0.035, 0.025), trim=True)]
    for t in np.linspace(0.35, 0.95, rng.integers(1, 4)):
        x, y = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3]) @ np.array(
            tail
        )
        parts.append(
            _Part(
                np.array(
                    [
                        (x - 0.09, y - 0.05),
                        (x + 0.09, y + 0.05),
                        (x + 0.09, y - 0.05),
                        (x - 0.09, y + 0.05),
                    ]
                )
            )
        )
    parts.append(_Part(np.array([top, right, bottom, left])))
    if rng.random() < 0.7:
        parts += [
            _Part(np.array([top, right, middle]), True),
            _Part(np.array([bottom, left, middle]), True),
        ]
    return parts


def _stone(rng: Generator) -> list[_Part]:
    size = rng.uniform(0.3, 0.5)
    return [_Part(_blob(rng, 0, -size, size * rng.uniform(1, 1.6), size, 0.3, 7))]


def _stick(rng: Generator) -> list[_Part]:
    bend = rng.normal(0, 0.25, 2)
    return [_Part(_limb([(0, 0), (bend[0], -0.6), (bend[1], -1.2)], 0.09, 0.04))]


def _slab(rng: Generator) -> list[_Part]:
    corners = np.array([(-0.4, 0), (-0.4, -0.8), (0.4, -0.8), (0.4, 0)]) * (
        rng.uniform(0.4, 1.4),
        1,
    )
    return [_Part(corners + rng.normal(0, 0.08, (4, 2)))]


_BUILDERS: tuple[Callable[[Generator], list[_Part]], ...] = (_beast, _tree, _bird, _jug, _kite)
_CLUTTER_BUILDERS = (_stone, _stone, _stick, _stick, _slab)
_FLYING = {CLASSES.index("bird"), CLASSES.index("kite")}

# Means of the hue for the body and the trim of clutter and each class: broad enough to overlap.
_HUES = ((0.2, 0.3), (0.07, 0.09), (0.28, 0.08), (0.58, 0.12), (0.98, 0.1), (0.8, 0.15))
_HUE_SPREAD = 0.08


# --- materials ------------------------------------------------------------------------------------


def _noise(
    rng: Generator, shape: tuple[int, int], cell: tuple[float, float]
) -> np.ndarray:  # [H, W] about normal
    """Smooth noise: a random lattice, one node a `cell` (rows, columns) in pixels, interpolated."""
    rows, columns = (max(2, round(s / max(c, 1.0)) + 1) for s, c in zip(shape, cell, strict=True))
    lattice = Image.fromarray(rng.normal(0, 1, (rows, columns)).astype(np.float32))
    return np.asarray(lattice.resize(shape[::-1], Image.Resampling.BICUBIC))


def _texture(rng: Generator, shape: tuple[int, int], unit: float) -> np.ndarray:  # [H, W] in 0..1
    """A texture of the shared bank; `unit` is the size in pixels that its grain follows."""
    kind, fine = rng.integers(6), unit * rng.uniform(0.04, 0.1)
    if kind == 0:  # clouds
        field = _noise(rng, shape, (6 * fine,) * 2) + 0.5 * _noise(rng, shape, (2 * fine,) * 2)
    elif kind == 1:  # spots
        field = 3 * (_noise(rng, shape, (2 * fine,) * 2) - 0.5)
    elif kind == 2:  # fur, wood or grass: noise drawn out along one axis
        cell = (fine, 8 * fine) if rng.random() < 0.5 else (8 * fine, fine)
        field = 1.2 * _noise(rng, shape, cell)
    elif kind == 3:  # grain
        field = _noise(rng, shape, (0.6 * fine,) * 2) + 0.6 * _noise(rng, shape, (4 * fine,) * 2)
    else:  # stripes and checks, warped
        y, x = np.ogrid[: shape[0], : shape[1]]
        angle, pitch = rng.uniform(0, np.pi), 2 * np.pi / (unit * rng.uniform(0.12, 0.25))
        warp = 0.8 * _noise(rng, shape, (0.4 * unit,) * 2)
        field = 2 * np.sin(pitch * (x * np.cos(angle) + y * np.sin(angle)) + warp)
        if kind == 5:
            field = field * np.sin(pitch * (y * np.cos(angle) - x * np.sin(angle)) + warp)
    return 1 / (1 + np.exp(-1.5 * field))


def _colour(rng: Generator, hue: float, spread: float = _HUE_SPREAD) -> np.ndarray:  # [3] in 0..1
    """A random colour near a hue; one in eight has any hue at all."""
    hue = rng.uniform() if rng.random() < 0.125 else rng.normal(hue, spread)
    return np.array(colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.15, 0.85), rng.uniform(0.3, 0.95)))


def _material(rng: Generator, shape: tuple[int, int], unit: float, hue: float) -> np.ndarray:
    """[H, W, 3] in 0..1: two related colours mixed by a texture."""
    base = _colour(rng, hue)
    accent = np.clip(base * rng.uniform(0.45, 1.5) + rng.normal(0, 0.06, 3), 0, 1)
    share = _texture(rng, shape, unit)[..., None] * rng.uniform(0.3, 1)
    return base + share * (accent - base)


# --- painting -------------------------------------------------------------------------------------


def _coverage(
    outlines: Sequence[tuple[np.ndarray, int]], box: tuple[int, int, int, int]
) -> np.ndarray:  # [bottom - top, right - left] in 0..1
    """Fill polygons with 0 or 1, in order, and average to the pixels of a box (l, t, r, b)."""
    left, top, right, bottom = box
    size = ((right - left) * _SUPERSAMPLING, (bottom - top) * _SUPERSAMPLING)
    stencil = Image.new("L", size)
    draw = ImageDraw.Draw(stencil)
    for outline, value in outlines:
        points = (outline - (left, top)) * _SUPERSAMPLING - 0.5
        draw.polygon(points.ravel().tolist(), fill=255 * value)
    return np.asarray(stencil.reduce(_SUPERSAMPLING), np.float32) / 255


def _relief(coverage: np.ndarray, light: tuple[float, float], unit: float) -> np.ndarray:
    """Shading in -1..1 that makes a flat shape look round: blurred edges face the light or not."""
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
    """Draw one layer over the picture and its label over the mask."""
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
    paint = _material(rng, shape, layer.height, hue if layer.label else rng.uniform())
    if any(trim for _, trim in placed):
        share = _coverage([(outline, int(trim)) for outline, trim in placed], box)[..., None]
        paint = paint + share * (_material(rng, shape, layer.height, trim_hue) - paint)
    relief = _relief(alpha, surroundings.light, layer.height)
    paint = paint * (1 + rng.uniform(0.3, 0.7) * relief[..., None])
    image[window] += alpha[..., None] * (paint - image[window])
    mask[window][alpha >= 0.5] = layer.label


def _darken_ground(image: np.ndarray, layer: _Layer, width: float) -> None:
    """Lay a soft elliptic shadow under the feet of a layer."""
    y, x = np.ogrid[: image.shape[0], : image.shape[1]]
    across, down = (x - layer.foot[0]) / (0.45 * width), (y - layer.foot[1]) / (0.08 * layer.height)
    image *= 1 - 0.45 * np.exp(-(across**2) - down**2)[..., None]


def _backdrop(rng: Generator, shape: tuple[int, int], surroundings: _Surroundings) -> np.ndarray:
    """[H, W, 3]: sky over hills over ground, or one material all over (a wall, a meadow)."""
    unit = surroundings.unit
    ground = _material(rng, shape, unit * rng.uniform(0.3, 1.2), rng.choice((0.25, 0.09, 0.13)))
    if rng.random() < 0.2:
        return ground.astype(np.float32)
    y = np.arange(shape[0])[:, None, None]
    sky = _colour(rng, 0.58) * 0.4 + 0.55
    image = sky + (rng.uniform(-0.3, 0.3) * (y / shape[0]) + np.zeros((*shape, 1)))
    image = (
        image + 0.06 * rng.uniform(0, 2) * _noise(rng, shape, (0.15 * unit, 0.35 * unit))[..., None]
    )
    for rise in (rng.uniform(0.03, 0.2), 0.0):
        ridge = 0.06 * unit * _noise(rng, (1, shape[1]), (1, 0.4 * unit)) * (1 if rise else 0.2)
        below = np.clip(y[..., 0] - (surroundings.horizon - rise * unit + ridge) + 0.5, 0, 1)[
            ..., None
        ]
        land = ground if not rise else _material(rng, shape, 0.5 * unit, 0.3) * 0.5 + 0.5 * image
        image = image + below * (land - image)
    return image.astype(np.float32)


def _place(
    rng: Generator, label: int, shape: tuple[int, int], surroundings: _Surroundings
) -> _Layer:
    """Put an object of a class somewhere; what stands lower in the picture is nearer and larger."""
    unit, (rows, columns) = surroundings.unit, shape
    x = rng.uniform(0.08, 0.92) * columns
    if label == _CLUTTER:
        parts, height = (
            _CLUTTER_BUILDERS[rng.integers(len(_CLUTTER_BUILDERS))](rng),
            rng.uniform(0.06, 0.24),
        )
        return _Layer(parts, label, (x, rng.uniform(0.1, 1.05) * rows), height * unit, False)
    parts = _BUILDERS[label - 1](rng)
    if label in _FLYING:
        height = rng.uniform(0.3, 0.68) * unit
        return _Layer(parts, label, (x, rng.uniform(0.35, 1.0) * rows), height, False)
    depth = rng.uniform(0, 1)
    y = surroundings.horizon + (0.2 + 0.8 * depth) * (0.98 * rows - surroundings.horizon)
    return _Layer(parts, label, (x, y), rng.uniform(0.36, 0.6) * (0.75 + 0.5 * depth) * unit, True)


def _blades(rng: Generator, shape: tuple[int, int], surroundings: _Surroundings) -> list[_Layer]:
    """Thin grass in front of everything, at the lower edge of the picture."""
    unit = surroundings.unit
    patch = rng.uniform(0, shape[1])
    return [
        _Layer(
            _stick(rng),
            _CLUTTER,
            (patch + rng.normal(0, 0.15) * unit, 1.02 * shape[0]),
            height,
            False,
        )
        for height in rng.uniform(0.08, 0.28, rng.integers(2, 8)) * unit
    ]


def _expose(rng: Generator, image: np.ndarray, surroundings: _Surroundings) -> np.ndarray:
    """The camera: uneven light with a tint, contrast, and noise of the sensor; back to uint8."""
    rows, columns = image.shape[:2]
    y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    towards = surroundings.light[0] * x + surroundings.light[1] * y
    slope, patches = rng.uniform(0, 0.25), rng.uniform(0, 0.12)
    light = (
        1 + slope * towards + patches * _noise(rng, (rows, columns), (0.4 * surroundings.unit,) * 2)
    )
    tint = rng.uniform(0.75, 1.1) * (1 + rng.normal(0, 0.05, 3))
    exposed = np.clip(image * light[..., None] * tint, 0, 1) ** rng.uniform(0.8, 1.25)
    exposed += rng.uniform(0.005, 0.04) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(exposed, 0, 1) * 255 + 0.5).astype(np.uint8)


def _as_shape(size: int | tuple[int, int]) -> tuple[int, int]:
    shape = (size, size) if isinstance(size, int | np.integer) else tuple(size)
    if len(shape) != 2 or min(shape) < 16:
        raise ValueError(
            f"size must be an int or (height, width) of at least 16 pixels, got {size!r}"
        )
    return shape


def render_scene(seed: int | Sequence[int], size: int | tuple[int, int] = 128) -> Scene:
    """Render one scene, the same for the same seed and size; its layout hardly depends on the size.

    Args:
        seed: A non-negative int or a sequence of them, as `numpy.random.SeedSequence` takes it.
        size: Side, or (height, width), in pixels; at least 16.

    Returns:
        The image and its mask, both of the given size.

    Raises:
        ValueError: If the size is too small or no size at all.
    """
    shape = _as_shape(size)
    # Streams of their own keep the layout the same however many numbers the textures draw.
    layout, backdrop, camera, *paints = map(np.random.default_rng, SeedSequence(seed).spawn(36))
    unit, angle = float(min(shape)), layout.uniform(-np.pi, 0)
    horizon = layout.uniform(0.2, 0.6) * shape[0]
    surroundings = _Surroundings(horizon, (np.cos(angle), np.sin(angle)), unit)
    image, mask = _backdrop(backdrop, shape, surroundings), np.zeros(shape, np.uint8)
    clutter = [_place(layout, _CLUTTER, shape, surroundings) for _ in range(layout.integers(2, 11))]
    labels = layout.integers(
        1, len(CLASSES), layout.choice((1, 2, 3, 4, 5), p=(0.15, 0.3, 0.3, 0.15, 0.1))
    )
    objects = [_place(layout, int(label), shape, surroundings) for label in labels]
    objects.sort(key=lambda layer: layer.foot[1])
    front = _blades(layout, shape, surroundings) if layout.random() < 0.4 else []
    for layer, rng in zip([*clutter, *objects, *front], paints, strict=False):
        _paint(image, mask, layer, surroundings, rng)
    return Scene(_expose(camera, image, surroundings), mask)


# --- on disk --------------------------------------------------------------------------------------


def write_scenes(
    root: Path,
    count: int,
    seed: int = 0,
    size: int | tuple[int, int] = 128,
    *,
    val_count: int = 0,
    **scribble_options: float,
) -> None:
    """Write scenes as a data-set folder: images, scribbles, masks, class names and split lists.

    The layout is `images/NAME.png`, `scribbles/NAME.png` (255 = unlabelled), `masks/NAME.png`,
    `classes.txt` and `splits/{train,val}.txt`. Scene i of a split depends on the seed and i alone,
    not on the counts.

    Args:
        root: The folder to make; it may exist if it is empty.
        count: Scenes for training.
        seed: Seed of the whole data set; the two splits draw from streams of their own.
        size: Side, or (height, width), in pixels.
        val_count: Scenes for validation.
        **scribble_options: `preference`, `width`, `length` and `drop` of `simulate_scribbles`.

    Raises:
        FileExistsError: If `root` holds anything already.
        ValueError: If a count is negative, or the size or a scribble option is out of range.
    """
    root = Path(root)
    ScribbleOptions(**scribble_options)
    _as_shape(size)
    if count < 0 or val_count < 0:
        raise ValueError(f"count and val_count must not be negative, got {count} and {val_count}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(
            f"{root} exists and is not an empty folder; scenes are never written over it"
        )
    for folder in ("images", "scribbles", "masks", "splits"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    for stream, (split, total) in enumerate((("train", count), ("val", val_count))):
        names = [f"{split}_{index:05d}" for index in range(total)]
        for index, name in enumerate(names):
            image, mask = render_scene((seed, stream, index), size)
            scribble = simulate_scribbles(mask, seed=(seed, stream, index), **scribble_options)
            imgviz.io.imsave(root / "images" / f"{name}.png", image)
            imgviz.io.lblsave(root / "masks" / f"{name}.png", mask)
            imgviz.io.lblsave(root / "scribbles" / f"{name}.png", scribble)
        (root / "splits" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
