"""The views of an image that a trained model predicts: scales, mirrored images, windows."""

from __future__ import annotations

from dataclasses import dataclass, field

from blpseg.errors import UserError

LOGIT_STRIDE = 4  # image pixels per logit, in each direction; a query_stride divides it


@dataclass(frozen=True)
class Views:
    """The views of an image; the model's results on all views are averaged.

    Raises:
        UserError: A field is out of range.
    """

    scales: list[float] = field(default_factory=lambda: [1.0])
    """Factors of the image's size; published: [0.5,0.75,1,1.25]."""

    flip: bool = False
    """Add the mirrored image, at each scale."""

    window: int | None = 1024
    """Largest side that the model predicts at once, a multiple of 4. Larger images (after scaling)
    are divided into windows. null: no windows, however much memory an image takes."""

    stride: int | None = None
    """Pixels from one window to the next, a multiple of 4. null: two thirds of the window."""

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < float("inf") for scale in self.scales):
            raise UserError(f"scales: expected one or more numbers above 0, got {self.scales}")
        for name, value in (("window", self.window), ("stride", self.stride)):
            if value is not None and (value < LOGIT_STRIDE or value % LOGIT_STRIDE):
                raise UserError(f"{name}: expected a multiple of {LOGIT_STRIDE}, got {value}")
        if self.stride is not None and (self.window is None or self.stride > self.window):
            raise UserError(
                f"stride: expected at most the window, {self.window}, got {self.stride}"
            )

    def starts(self, side: int) -> list[int]:
        """List the starts of the windows along a side; the last window reaches the end."""
        if self.window is None or side <= self.window:
            return [0]
        stride = self.stride or max(
            LOGIT_STRIDE, self.window * 2 // 3 // LOGIT_STRIDE * LOGIT_STRIDE
        )
        last = -(-(side - self.window) // LOGIT_STRIDE) * LOGIT_STRIDE
        return [*range(0, last, stride), last]


SINGLE_VIEW = Views()
