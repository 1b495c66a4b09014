"""Which frames of a video make its clips: pure index maths on numpy integers, no input or output.

Letters: n frames in the video, T frames in a clip, C clips, s the stride between the frames of a dense clip.

Every function returns int64 indices of shape (C, T), all in [0, n), never decreasing inside a clip. Indices
count the *frames* of the video in the order in which they are shown, so a variable frame rate changes nothing
here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]


def dense_clips(num_video_frames: int, *, num_frames: int, frame_stride: int, num_clips: int) -> Indices:
    """Clips of `num_frames` frames, `frame_stride` apart, whose starts are spread evenly over the video.

    A clip spans (T - 1) * s + 1 frames. One clip sits in the middle; of several, the first starts at frame 0
    and the last ends at the last frame. With n = 12, T = 3, s = 2 (span 5):

        frame        0  1  2  3  4  5  6  7  8  9  10 11
        1 clip                x     x     x            3 frames stay free before, 4 after
        3 clips      x     x     x
                                 x     x     x
                                          x     x     x

    Clips overlap when the video is short. A video shorter than the span holds one clip only; the clip starts
    at frame 0 and the last frame is repeated. With n = 4, T = 3, s = 2:

        frame        0  1  2  3
        every clip   x     x  x <- the last index would be 4

    Args:
        num_video_frames: n, at least 1.
        num_frames: T, frames of a clip.
        frame_stride: s, 1 for consecutive frames.
        num_clips: C, may exceed n; clips then repeat.

    Returns:
        (C, T) int64.

    Raises:
        ValueError: an argument is below 1.
    """
    _check_positive(
        num_video_frames=num_video_frames,
        num_frames=num_frames,
        frame_stride=frame_stride,
        num_clips=num_clips,
    )
    span = (num_frames - 1) * frame_stride + 1
    free = max(num_video_frames - span, 0)
    if num_clips == 1:
        starts = np.array([free // 2], dtype=np.int64)
    else:
        # Integer form of round(linspace(0, free, C)), halves upwards: no float can move a frame on another
        # machine.
        steps = np.arange(num_clips, dtype=np.int64)
        starts = (2 * steps * free + num_clips - 1) // (2 * (num_clips - 1))
    offsets = frame_stride * np.arange(num_frames, dtype=np.int64)
    return np.minimum(starts[:, None] + offsets, num_video_frames - 1)


def uniform_segments(num_video_frames: int, *, num_frames: int, num_clips: int) -> Indices:
    """Clips that each cover the whole video: one frame from every one of `num_frames` equal segments (as TSN does).

    One clip takes the middle of each segment; C clips take the middles of the C equal parts of each segment.
    With n = 12, T = 3 (segments of 4 frames):

        frame        0  1  2  3  | 4  5  6  7  | 8  9  10 11
        1 clip             x             x             x
        2 clips         x             x             x
                              x             x             x

    A video with fewer frames than segments repeats frames. With n = 2, T = 4 (segments of half a frame):

        frame        0     | 1
        1 clip       x  x    x  x

    Args:
        num_video_frames: n, at least 1.
        num_frames: T, the number of segments and of frames in a clip.
        num_clips: C, may exceed the length of a segment; clips then repeat.

    Returns:
        (C, T) int64.

    Raises:
        ValueError: an argument is below 1.
    """
    _check_positive(num_video_frames=num_video_frames, num_frames=num_frames, num_clips=num_clips)
    segment = np.arange(num_frames, dtype=np.int64)
    part = np.arange(num_clips, dtype=np.int64)
    # floor((segment + (part + 1/2) / C) * n / T), with both fractions brought over 2 C T.
    doubled = 2 * num_clips * segment[None, :] + 2 * part[:, None] + 1
    return doubled * num_video_frames // (2 * num_clips * num_frames)


def _check_positive(**arguments: int) -> None:
    for name, value in arguments.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
