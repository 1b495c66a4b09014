"""Which frames of a video make its clips: pure index maths on numpy integers, no input or output.

Letters: n frames in the video, T frames in a clip, C clips, s the stride between the frames of a dense clip.

    dense_clips       neighbouring frames; the clips reach from the first frame to the last
    uniform_segments  every clip covers the whole video
    videomae_dense, videomae_uniform, vivit_dense, mmaction, vjepa2
                      the same two ideas with the exact frames of a published evaluation

Every function returns int64 indices of shape (C, T), all in [0, n), never decreasing inside a clip (but
`vivit_dense` and `mmaction` start a short video again). Indices count the *frames* of the video in the order in which
they are shown, so a variable frame rate changes nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..core.errors import check_known

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

    There may be more clips than frames; clips then repeat.

    Raises ValueError: an argument is below 1.
    """
    _check_positive(num_video_frames, num_frames, num_clips, frame_stride)
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

    There may be more clips than frames in a segment; clips then repeat.

    Raises ValueError: an argument is below 1.
    """
    _check_positive(num_video_frames, num_frames, num_clips)
    segment = np.arange(num_frames, dtype=np.int64)
    part = np.arange(num_clips, dtype=np.int64)
    # floor((segment + (part + 1/2) / C) * n / T), with both fractions brought over 2 C T.
    doubled = 2 * num_clips * segment[None, :] + 2 * part[:, None] + 1
    return doubled * num_video_frames // (2 * num_clips * num_frames)


def videomae_dense(num_video_frames: int, *, num_frames: int, frame_stride: int, num_clips: int) -> Indices:
    """The frames that VideoMAE's evaluation on Kinetics-400, UCF101 and HMDB51 reads.

    The video is thinned first, to the frames 0, s, 2 s, ...; clips are T neighbours of what is left, their starts
    spread evenly and rounded down. So clips start at multiples of s, less than 2 s frames from those of
    `dense_clips`. A video that is too short repeats the last frame that thinning left. With n = 12, T = 3, s = 2:

        frame        0  1  2  3  4  5  6  7  8  9  10 11
        3 clips      x     x     x
                           x     x     x               starts in the thinned video: 0, 1.5, 3
                                       x     x     x

    Source: `VideoClsDataset` in the repository of Tong et al. (VideoMAE), test mode. One clip, which their
    evaluation does not know, sits in the middle.

    Args and Raises: as `dense_clips`.
    """
    _check_positive(num_video_frames, num_frames, num_clips, frame_stride)
    thinned = -(-num_video_frames // frame_stride)
    starts = _starts_rounded_down(max(thinned - num_frames, 0), num_clips)
    places = np.minimum(starts[:, None] + np.arange(num_frames, dtype=np.int64), thinned - 1)
    return frame_stride * places


def videomae_uniform(num_video_frames: int, *, num_frames: int, num_clips: int) -> Indices:
    """The frames that VideoMAE's evaluation on Something-Something v2 reads.

    As `uniform_segments`, but clip c of C takes the place c / C of each segment: of two clips, the first takes where
    the segments begin and the second takes their middles. With n = 12, T = 3:

        frame        0  1  2  3  | 4  5  6  7  | 8  9  10 11
        2 clips      x             x             x
                           x             x             x

    Source: `SSVideoClsDataset` in the repository of Tong et al. (VideoMAE), test mode, which has two clips. One clip
    takes the middles.

    Args and Raises: as `uniform_segments`.
    """
    _check_positive(num_video_frames, num_frames, num_clips)
    if num_clips == 1:
        return uniform_segments(num_video_frames, num_frames=num_frames, num_clips=1)
    segment = np.arange(num_frames, dtype=np.int64)
    part = np.arange(num_clips, dtype=np.int64)
    return (num_clips * segment[None, :] + part[:, None]) * num_video_frames // (num_clips * num_frames)


def vivit_dense(num_video_frames: int, *, num_frames: int, frame_stride: int, num_clips: int) -> Indices:
    """The frames that ViViT's evaluation reads.

    As `dense_clips`, but a clip is taken to span T * s frames, starts are rounded down, and a video that is too short
    is shown again from its first frame. With n = 12, T = 3, s = 2 (span 6):

        frame        0  1  2  3  4  5  6  7  8  9  10 11
        3 clips      x     x     x
                              x     x     x
                                       x     x     x

    Source: `sample_linspace_sequence` of DMVR, with the settings of Scenic's ViViT (Arnab et al.). That evaluation
    reads Kinetics at 25 frames per second; here a stride counts frames of the file.

    Args and Raises: as `dense_clips`.
    """
    _check_positive(num_video_frames, num_frames, num_clips, frame_stride)
    starts = _starts_rounded_down(max(num_video_frames - num_frames * frame_stride, 0), num_clips)
    offsets = frame_stride * np.arange(num_frames, dtype=np.int64)
    return (starts[:, None] + offsets) % num_video_frames


def mmaction(num_video_frames: int, *, num_frames: int, frame_stride: int, num_clips: int) -> Indices:
    """The frames that mmaction2's `SampleFrames` chooses in test mode, which PaPr's evaluation on Kinetics-400 reads.

    As `dense_clips`, but a start that falls between two frames goes to the even one, and a video that is too short is
    shown again from its first frame. With n = 13, T = 3, s = 2 (span 5, 8 free):

        frame        0  1  2  3  4  5  6  7  8  9  10 11 12
        1 clip                   x     x     x
        3 clips      x     x     x
                                 x     x     x
                                             x     x     x

    Source: mmaction2 1.0 to 1.2 (`mmaction/datasets/transforms/loading.py`), for clips of several frames. Older
    releases, which do not have VideoMAE, take the centres of equal segments instead.

    Args and Raises: as `dense_clips`.
    """
    _check_positive(num_video_frames, num_frames, num_clips, frame_stride)
    free = max(num_video_frames - (num_frames - 1) * frame_stride - 1, 0)
    if num_clips == 1:
        starts = np.array([free // 2], dtype=np.int64)
    else:  # in floats, so that ties fall as they do there
        starts = np.rint(np.arange(num_clips) * (free / (num_clips - 1))).astype(np.int64)
    offsets = frame_stride * np.arange(num_frames, dtype=np.int64)
    return (starts[:, None] + offsets) % num_video_frames


def vjepa2(num_video_frames: int, *, num_frames: int, frame_stride: int, num_clips: int) -> Indices:
    """The frames that V-JEPA 2's evaluation of its classifiers reads.

    Of C equal parts of the video each gives its first T * s frames, T of them evenly spaced from the first to the last.
    Where the parts are shorter, clips overlap and reach to the end of the video; one that is too short repeats its last
    frame but one. With n = 16, T = 3, s = 2 (clips of 6):

        frame        0  1  2  3  4  5  6  7  8  9  10 11 12 13 14 15
        2 clips      x        x     x
                                             x        x     x

    Source: `src/datasets/video_dataset.py` of Assran et al. (V-JEPA 2), without random starts and with overlap.

    Args and Raises: as `dense_clips`.
    """
    _check_positive(num_video_frames, num_frames, num_clips, frame_stride)
    part, length = num_video_frames // num_clips, num_frames * frame_stride
    if part > length:
        offsets, step = np.linspace(0, length, num_frames).clip(max=length - 1), part
    else:
        last = min(length, num_video_frames) - 1
        evenly = np.linspace(0, last, last // frame_stride)
        offsets = np.append(evenly, np.full(num_frames - len(evenly), last)).clip(max=max(last - 1, 0))
        step = max(num_video_frames - length, 0) // max(num_clips - 1, 1)
    starts = step * np.arange(num_clips, dtype=np.int64)
    return starts[:, None] + offsets.astype(np.int64)


NEAR = {  # samplings with a stride
    "dense": dense_clips,
    "videomae_dense": videomae_dense,
    "vivit_dense": vivit_dense,
    "mmaction": mmaction,
    "vjepa2": vjepa2,
}
SPREAD = {"uniform": uniform_segments, "videomae_uniform": videomae_uniform}


def choose_sampler(
    name: str, *, num_frames: int, num_clips: int, frame_stride: int
) -> Callable[[int], Indices]:
    """The function (frames of the video) -> (C, T) indices that `dataset.sampling` names.

    Args:
        name: of `NEAR` or `SPREAD`.
        num_frames, num_clips, frame_stride: T, C, s; s plays no part in uniform sampling.

    Raises ConfigError: `name` is unknown.
    """
    if name in SPREAD:
        return partial(SPREAD[name], num_frames=num_frames, num_clips=num_clips)
    check_known("dataset.sampling", name, [*NEAR, *SPREAD])
    return partial(NEAR[name], num_frames=num_frames, frame_stride=frame_stride, num_clips=num_clips)


def frames_needed(sampling: str, *, num_frames: int, frame_stride: int) -> int:
    """Returns how many frames a video must have so that no frame of a clip is repeated."""
    return num_frames if sampling in SPREAD else (num_frames - 1) * frame_stride + 1


def _starts_rounded_down(free: int, num_clips: int) -> Indices:
    """C starts over 0..free, the first at 0 and the last at `free`; a single one in the middle."""
    if num_clips == 1:
        return np.array([free // 2], dtype=np.int64)
    return np.arange(num_clips, dtype=np.int64) * free // (num_clips - 1)


def _check_positive(
    num_video_frames: int, num_frames: int, num_clips: int, frame_stride: int | None = None
) -> None:
    for name, value in locals().copy().items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
