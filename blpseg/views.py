"""How images are shown to a trained model: scales, mirrored, through windows."""

from __future__ import annotations

from dataclasses import dataclass, field

from blpseg.errors import UserError

CELL = 4  # pixels a side that share a cell of the logits: the model's first stride


@dataclass(frozen=True)
class Views:
    """How an image is shown to the model; the results are averaged.

    Raises:
        UserError: A field is out of range.
    """

    scales: list[float] = field(default_factory=lambda: [1.0])
    """Factors of the image's size, e.g. [0.5,0.75,1,1.25] as published."""

    flip: bool = False
    """Show the mirrored image too, at each scale."""

    window: int | None = 1024
    """Longest side that the model sees at once, a multiple of 4; larger images (after scaling) are
    seen through windows; null: never, whatever memory that takes."""

    stride: int | None = None
    """Pixels from a window to the next, a multiple of 4; null: two thirds of the window."""

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise UserError(f"scales: expected numbers above 0, got {self.scales}")
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None and (value < CELL or value % CELL):
                raise UserError(f"{name}: expected a multiple of {CELL}, got {value}")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise UserError(
                f"stride: expected at most the window, {self.window}, got {self.stride}"
            )

    def starts(self, side: int) -> list[int]:
        """Where windows begin along a side; the last one reaches the end."""
        if self.window is None or side <= self.window:
            return [0]
        stride = self.stride or max(CELL, self.window * 2 // 3 // CELL * CELL)
        last = -(-(side - self.window) // CELL) * CELL
        return [*range(0, last, stride), last]


SINGLE_VIEW = Views()
