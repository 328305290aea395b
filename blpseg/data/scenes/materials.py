"""Colors, and one bank of textures that every class and the clutter draw from."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.random import Generator
from PIL import Image

_HUE_SPREAD = 0.04  # standard deviation of a color's hue around its class's, of a full circle
VIVID, DULL = (0.45, 0.9), (0.1, 0.45)  # saturation of objects and of everything else


def noise(
    rng: Generator, shape: tuple[int, int], cell: tuple[float, float]
) -> np.ndarray:  # [H, W] about normal
    """Interpolate a random lattice with one node per `cell` (rows, columns; in pixels)."""
    rows, columns = (max(2, round(s / max(c, 1.0)) + 1) for s, c in zip(shape, cell, strict=True))
    lattice = Image.fromarray(rng.normal(0, 1, (rows, columns)).astype(np.float32))
    return np.asarray(lattice.resize(shape[::-1], Image.Resampling.BICUBIC))


def _texture(rng: Generator, shape: tuple[int, int], unit: float) -> np.ndarray:  # [H, W] in 0..1
    """Draw a texture from the bank; its grain is proportional to `unit`, in pixels."""
    kind, fine = rng.integers(6), unit * rng.uniform(0.04, 0.1)
    if kind == 0:  # clouds
        field = noise(rng, shape, (6 * fine,) * 2) + 0.5 * noise(rng, shape, (2 * fine,) * 2)
    elif kind == 1:  # spots
        field = 3 * (noise(rng, shape, (2 * fine,) * 2) - 0.5)
    elif kind == 2:  # fur, wood or grass: noise drawn out along one axis
        cell = (fine, 8 * fine) if rng.random() < 0.5 else (8 * fine, fine)
        field = 1.2 * noise(rng, shape, cell)
    elif kind == 3:  # grain
        field = noise(rng, shape, (0.6 * fine,) * 2) + 0.6 * noise(rng, shape, (4 * fine,) * 2)
    else:  # stripes and checks, warped
        y, x = np.ogrid[: shape[0], : shape[1]]
        angle, pitch = rng.uniform(0, np.pi), 2 * np.pi / (unit * rng.uniform(0.12, 0.25))
        warp = 0.8 * noise(rng, shape, (0.4 * unit,) * 2)
        field = 2 * np.sin(pitch * (x * np.cos(angle) + y * np.sin(angle)) + warp)
        if kind == 5:
            field = field * np.sin(pitch * (y * np.cos(angle) - x * np.sin(angle)) + warp)
    return 1 / (1 + np.exp(-1.5 * field))


def random_color(
    rng: Generator, hue: float, saturation: tuple[float, float]
) -> np.ndarray:  # [3] in 0..1
    """Draw a color near a hue, with a saturation in a range."""
    hue = rng.normal(hue, _HUE_SPREAD) % 1
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(0.35, 0.95)))


def material(
    rng: Generator,
    shape: tuple[int, int],
    unit: float,
    hue: float,
    saturation: tuple[float, float],
) -> np.ndarray:
    """Return [H, W, 3] in 0..1: two related colors mixed by a texture."""
    base = random_color(rng, hue, saturation)
    accent = np.clip(base * rng.uniform(0.45, 1.5) + rng.normal(0, 0.06, 3), 0, 1)
    mix = _texture(rng, shape, unit)[..., None] * rng.uniform(0.3, 1)
    return base + mix * (accent - base)
