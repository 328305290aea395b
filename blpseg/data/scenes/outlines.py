"""The outlines of objects and clutter: lists of polygons with a thick body and thin parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.random import Generator


class Part(NamedTuple):
    """A polygon in the object's own frame: height about 1, y down, feet at the origin."""

    outline: np.ndarray  # [P, 2] x, y
    trim: bool = False  # whether it is painted with the object's second material


Builder = Callable[[Generator], list[Part]]


def _blob(
    rng: Generator,
    x: float,
    y: float,
    rx: float,
    ry: float,
    lumps: float = 0.15,
    harmonics: int = 4,
) -> np.ndarray:  # [48, 2]
    """Return a closed curve around (x, y): an ellipse with random low harmonics."""
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    order = np.arange(2, 2 + harmonics)[:, None]
    waves = np.cos(order * angle + rng.uniform(0, 2 * np.pi, (harmonics, 1)))
    radius = 1 + lumps * (rng.normal(0, 1, (harmonics, 1)) / order * waves).sum(0)
    return np.stack([x + rx * radius * np.cos(angle), y + ry * radius * np.sin(angle)], axis=1)


def _limb(controls: Sequence[tuple[float, float]], start: float, end: float) -> np.ndarray:
    """Return a stroke along a Bezier curve; its width tapers from `start` to `end`."""
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


def _beast(rng: Generator) -> list[Part]:
    """A four-legged animal: barrel body; thin legs, a tail and sometimes horns."""
    leg, length, girth = rng.uniform(0.28, 0.5), rng.uniform(0.34, 0.5), rng.uniform(0.15, 0.24)
    width = rng.uniform(0.045, 0.075)
    back = -leg - girth
    parts = []
    for hip in (-length * 0.75, -length * 0.5, length * 0.5, length * 0.78):
        knee, foot = hip + rng.normal(0, 0.05), hip + rng.normal(0, 0.07)
        stance = [(hip, back + 0.05), (knee, -leg / 2), (foot, 0)]
        parts.append(Part(_limb(stance, 2 * width, width)))
    rump, sway = (-length * 0.9, back - girth * 0.4), rng.uniform(-0.4, 0.3)
    tail = [rump, (-length - 0.15, back - girth), (-length - rng.uniform(0.1, 0.3), back + sway)]
    parts.append(Part(_limb(tail, 0.05, 0.03)))
    parts.append(Part(_blob(rng, 0, back, length, girth)))
    head = (length + rng.uniform(0.08, 0.25), back - girth - rng.uniform(0.0, 0.35))
    neck = [(length * 0.7, back), ((length + head[0]) / 2, head[1] / 2 + back / 2), head]
    parts.append(Part(_limb(neck, girth * 1.2, 0.12)))
    parts.append(Part(_blob(rng, head[0] + 0.05, head[1], rng.uniform(0.12, 0.17), 0.085)))
    trim = bool(rng.random() < 0.5)
    for lean in (-0.06, 0.02):
        ear = [(head[0], head[1] - 0.04), (head[0] + lean, head[1] - rng.uniform(0.14, 0.26))]
        parts.append(Part(_limb(ear, 0.05, 0.02), trim))
    return parts


def _tree(rng: Generator) -> list[Part]:
    """A crown, round or in tiers, on a thin trunk with bare branches."""
    base, width, lean = rng.uniform(-0.6, -0.4), rng.uniform(0.05, 0.1), rng.normal(0, 0.06)
    parts = [
        Part(_limb([(0, 0), (0, base / 2), (lean, base - 0.2)], width, width * 0.6), trim=True)
    ]
    for _ in range(rng.integers(0, 4)):
        y, reach = rng.uniform(base, base * 0.6), rng.choice((-1, 1)) * rng.uniform(0.18, 0.34)
        branch = [(0, y), (reach * 0.7, y), (reach, y - rng.uniform(0.1, 0.25))]
        parts.append(Part(_limb(branch, 0.045, 0.02), trim=True))
    if rng.random() < 0.35:
        tiers, spread = rng.integers(2, 5), rng.uniform(0.2, 0.34)
        for y in np.linspace(base + 0.05, -0.75, tiers):
            half, top = spread * (y - 0.2) / (base - 0.2) * (1.4 + y), y - 0.28
            parts.append(Part(np.array([(lean - half, y), (lean, top), (lean + half, y)])))
    else:
        for _ in range(rng.integers(1, 5)):
            x, y = lean + rng.normal(0, 0.1), rng.uniform(-0.75, base - 0.15)
            size = rng.uniform(0.16, 0.26)
            parts.append(Part(_blob(rng, x, y, size * rng.uniform(1, 1.3), size, 0.2, 9)))
    return parts


def _bird(rng: Generator) -> list[Part]:
    """A drop-shaped body with beak and fan tail, standing on thin legs or with its wings out."""
    girth, nod = rng.uniform(0.15, 0.21), rng.uniform(-0.1, 0.1)
    parts = []
    standing = rng.random() < 0.5
    if standing:
        for hip in (-0.03, 0.08):
            ankle = (hip + rng.normal(0, 0.03), 0)
            parts.append(Part(_limb([(hip, -0.45), (hip - 0.06, -0.2), ankle], 0.045, 0.035), True))
            parts.append(Part(_limb([ankle, (ankle[0] + 0.1, 0)], 0.035, 0.02), True))
    spread = rng.uniform(0.05, 0.16)
    fan = [(-0.2, -0.5), (-0.68, -0.5 - spread + nod), (-0.72, -0.5 + spread + nod)]
    parts.append(Part(np.array(fan)))
    beak = [(0.36, -0.74 + nod), (0.36, -0.64 + nod), (rng.uniform(0.52, 0.66), -0.66 + nod)]
    parts.append(Part(np.array(beak), trim=True))
    parts.append(Part(_limb([(-0.3, -0.5), (0.1, -0.45), (0.32, -0.68 + nod)], girth, 0.16)))
    parts.append(Part(_blob(rng, 0, -0.5, 0.31, girth, 0.08)))
    parts.append(Part(_blob(rng, 0.32, -0.69 + nod, 0.12, 0.11, 0.05)))
    wings = [(0.0, -1)] if standing else [(rng.uniform(-0.3, 0.1), -1), (rng.uniform(-0.2, 0.2), 1)]
    for sweep, up in wings:
        reach = 0.12 if standing else rng.uniform(0.4, 0.6)
        stretch = [(0.08, -0.5), (0.12, -0.5 + up * reach * 0.7), (sweep - 0.1, -0.5 + up * reach)]
        parts.append(Part(_limb(stretch, 0.26, 0.04), trim=standing or bool(rng.random() < 0.3)))
    return parts


def _jug(rng: Generator) -> list[Part]:
    """A turned vessel with one or two thin handles and sometimes a spout."""
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
        parts.append(Part(_limb(handle, thickness, thickness)))
    if len(parts) == 1 and rng.random() < 0.5:
        spout = [(-belly * 0.8, -0.4), (-belly - 0.15, -0.45), (-belly - 0.2, -0.8)]
        parts.append(Part(_limb(spout, 0.14, 0.05)))
    parts.append(Part(body))
    if rng.random() < 0.6:
        rows = np.abs(y - rng.uniform(0.25, 0.6)) < rng.uniform(0.05, 0.15)
        band = np.stack(
            [np.r_[half[rows], -half[rows][::-1]], -np.r_[y[rows], y[rows][::-1]]], axis=1
        )
        parts.append(Part(band, trim=True))
    return parts


def _kite(rng: Generator) -> list[Part]:
    """A four-cornered sail with two panels and a long thin tail with bows."""
    half, cross = rng.uniform(0.24, 0.38), rng.uniform(-0.82, -0.66)
    top, right, bottom, left = np.array([(0, -1), (half, cross), (0, -0.35), (-half, cross)])
    middle = np.array([0, cross])
    sway = rng.uniform(-0.35, 0.35, 2)
    tail = [(0, -0.38), (sway[0], -0.2), (sway[1], 0.05), (sway.sum() / 2, 0.25)]
    parts = [Part(_limb(tail, 0.035, 0.025), trim=True)]
    for t in np.linspace(0.35, 0.95, rng.integers(1, 4)):
        x, y = np.array([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3]) @ np.array(
            tail
        )
        parts.append(
            Part(
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
    parts.append(Part(np.array([top, right, bottom, left])))
    if rng.random() < 0.7:
        parts += [
            Part(np.array([top, right, middle]), True),
            Part(np.array([bottom, left, middle]), True),
        ]
    return parts


def _stone(rng: Generator) -> list[Part]:
    size = rng.uniform(0.3, 0.5)
    return [Part(_blob(rng, 0, -size, size * rng.uniform(1, 1.6), size, 0.3, 7))]


def blade(rng: Generator) -> list[Part]:
    """Return a bent blade of grass or a stick."""
    bend = rng.normal(0, 0.25, 2)
    return [Part(_limb([(0, 0), (bend[0], -0.6), (bend[1], -1.2)], 0.09, 0.04))]


def _slab(rng: Generator) -> list[Part]:
    corners = np.array([(-0.4, 0), (-0.4, -0.8), (0.4, -0.8), (0.4, 0)]) * (
        rng.uniform(0.4, 1.4),
        1,
    )
    return [Part(corners + rng.normal(0, 0.08, (4, 2)))]


# The class of an object is its builder's place here, from 1 on; 0 is the background.
OBJECTS: dict[str, Builder] = {
    "beast": _beast,
    "tree": _tree,
    "bird": _bird,
    "jug": _jug,
    "kite": _kite,
}
CLUTTER: tuple[Builder, ...] = (_stone, _stone, blade, blade, _slab)
