"""What a reader returns, and how it says that it cannot."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
Indices = NDArray[np.int64]
Resize = Callable[[int, int], tuple[int, int]]

# [23:03:11] /github/workspace/src/video/video_reader.cc:270: [take 2.mp4]
_DECORD_PREFIX = re.compile(r"\[[\d:]+\] \S+\.(cc|h):\d+: (\[.*?\] ?)?")


class Refused(Exception):
    """A reader cannot decode the file; the text is the reason."""


class EndedEarly(Exception):
    """The decoder showed only `num_frames` frames."""

    def __init__(self, num_frames: int) -> None:
        super().__init__(f"only {num_frames} frames can be decoded")
        self.num_frames = num_frames


def scattered(frames: Frames, places: Indices) -> Frames:
    """Frames (n, H, W, 3) and where they stand in clips, (C, T) -> (C, T, H, W, 3), without a copy if it can be."""
    if np.array_equal(places.ravel(), np.arange(len(frames))):
        return frames.reshape(*places.shape, *frames.shape[1:])
    return frames[places]


def reason(error: BaseException) -> str:
    """What went wrong, in one short line, without the path that FFmpeg repeats and decord's place in its source."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = _DECORD_PREFIX.sub("", " ".join(str(text).split()))
    return text if len(text) <= 200 else text[:197] + "..."
