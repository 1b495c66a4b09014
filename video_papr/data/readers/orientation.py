"""Display matrix: how the frames of a phone or camera are turned and mirrored before they are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

from .answers import Frames

_NEARLY_ZERO = 0.05  # of the larger entries: a matrix in fixed point is not exact


@dataclass(frozen=True)
class Orientation:
    """Rows and columns change places first; then frames are mirrored left to right, and upside down."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    def apply(self, pixels: Frames) -> Frames:
        """Frames (..., H, W, 3) as they are stored -> as they are shown."""
        if self.transpose:
            pixels = rearrange(pixels, "... h w c -> ... w h c")
        return pixels[..., :: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1, :]


AS_STORED = Orientation()


def orientation_of(frame: Any) -> Orientation:
    """Reads the display matrix of a decoded frame (PyAV). Other angles than quarter turns are left as they are."""
    side_data = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return AS_STORED
    # [a b u; c d v; x y w]: a stored place (x, y) is shown at (a x + c y, b x + d y), with y downwards.
    a, b, _, c, d = np.frombuffer(bytes(side_data), np.int32)[:5].tolist()
    straight, crossed = abs(a) + abs(d), abs(b) + abs(c)
    if min(straight, crossed) > _NEARLY_ZERO * max(straight, crossed):
        return AS_STORED
    if straight >= crossed:
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
