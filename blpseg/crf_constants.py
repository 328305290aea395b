"""The constants of the dense CRF, and two sets of them; imports neither torch nor the CRF."""

from __future__ import annotations

from dataclasses import dataclass

from blpseg.errors import UserError


@dataclass(frozen=True)
class CRF:
    """Constants of the dense CRF; the defaults are those of DeepLab's successors on PASCAL VOC.

    Raises:
        UserError: A constant is out of range.
    """

    iterations: int = 10
    """Mean-field iterations, at least 1."""

    smoothness: tuple[float, float] = (1, 3)
    """sxy, compat: pixels within about sxy pixels tend to get one label, with weight compat."""

    appearance: tuple[float, float, float] = (67, 3, 4)
    """sxy, srgb, compat: the same for pixels whose colors (0 to 255) differ by about srgb."""

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise UserError(f"crf_iterations: expected at least 1, got {self.iterations}")
        for name, values in (("smoothness", self.smoothness), ("appearance", self.appearance)):
            if not all(0 < value < float("inf") for value in values):
                raise UserError(f"crf_{name}: expected numbers above 0, got {list(values)}")


DEEPLAB = CRF()
AUTHORS = CRF(iterations=1, smoothness=(3, 3), appearance=(32, 13, 10))  # the authors' VOC test
PRESETS = {"deeplab": DEEPLAB, "authors": AUTHORS}
