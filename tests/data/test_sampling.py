"""Frame indices: examples worked out by hand, and what must hold for every video and clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_papr.data.sampling import dense_clips, uniform_segments

counts = st.integers(1, 400)
clip_lengths = st.integers(1, 40)
few = st.integers(1, 12)


@pytest.mark.parametrize(
    ("num_video_frames", "num_frames", "frame_stride", "num_clips", "expected"),
    [
        # the timelines of the docstring
        (12, 3, 2, 1, [[3, 5, 7]]),
        (12, 3, 2, 3, [[0, 2, 4], [4, 6, 8], [7, 9, 11]]),
        (4, 3, 2, 2, [[0, 2, 3], [0, 2, 3]]),
        # the video is as long as the span, one frame longer, one shorter
        (5, 3, 2, 1, [[0, 2, 4]]),
        (6, 3, 2, 1, [[0, 2, 4]]),
        (6, 3, 2, 2, [[0, 2, 4], [1, 3, 5]]),
        (4, 3, 2, 1, [[0, 2, 3]]),
        # one frame, one-frame clips, more clips than frames
        (1, 4, 4, 2, [[0, 0, 0, 0], [0, 0, 0, 0]]),
        (9, 1, 4, 3, [[0], [4], [8]]),
        (2, 1, 1, 4, [[0], [0], [1], [1]]),
        # 10 s at 30 frames per second as VideoMAE tests it: 16 frames, stride 4, centred
        (300, 16, 4, 1, [list(range(119, 119 + 64, 4))[:16]]),
    ],
)
def test_dense_clips_by_hand(
    num_video_frames: int, num_frames: int, frame_stride: int, num_clips: int, expected: list[list[int]]
) -> None:
    indices = dense_clips(
        num_video_frames, num_frames=num_frames, frame_stride=frame_stride, num_clips=num_clips
    )
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


@pytest.mark.parametrize(
    ("num_video_frames", "num_frames", "num_clips", "expected"),
    [
        (12, 3, 1, [[2, 6, 10]]),
        (12, 3, 2, [[1, 5, 9], [3, 7, 11]]),
        (2, 4, 1, [[0, 0, 1, 1]]),
        (1, 3, 2, [[0, 0, 0], [0, 0, 0]]),
        (8, 8, 1, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (10, 4, 1, [[1, 3, 6, 8]]),  # segments of 2.5 frames: 1.25, 3.75, 6.25, 8.75
        (10, 1, 3, [[1], [5], [8]]),  # 10/6, 30/6, 50/6
    ],
)
def test_uniform_segments_by_hand(
    num_video_frames: int, num_frames: int, num_clips: int, expected: list[list[int]]
) -> None:
    indices = uniform_segments(num_video_frames, num_frames=num_frames, num_clips=num_clips)
    assert indices.dtype == np.int64
    assert indices.tolist() == expected


@given(counts, clip_lengths, few, few)
def test_dense_clips_always(n: int, num_frames: int, frame_stride: int, num_clips: int) -> None:
    indices = dense_clips(n, num_frames=num_frames, frame_stride=frame_stride, num_clips=num_clips)
    span = (num_frames - 1) * frame_stride + 1
    assert indices.shape == (num_clips, num_frames)
    assert indices.min() >= 0 and indices.max() < n
    assert (np.diff(indices, axis=1) >= 0).all()
    assert (np.diff(indices[:, 0]) >= 0).all()
    if n >= span:
        assert (np.diff(indices, axis=1) == frame_stride).all()
        before, after = indices[0, 0], n - 1 - indices[-1, -1]
        assert (before, after) == (0, 0) if num_clips > 1 else after - before in (0, 1)
        if num_clips > 1:  # starts are spread evenly, to within the rounding to whole frames
            assert np.ptp(np.diff(indices[:, 0])) <= 1
    else:
        assert (indices == indices[0]).all()
        assert indices[0].tolist() == [min(i * frame_stride, n - 1) for i in range(num_frames)]


@given(counts, clip_lengths, few)
def test_uniform_segments_always(n: int, num_frames: int, num_clips: int) -> None:
    indices = uniform_segments(n, num_frames=num_frames, num_clips=num_clips)
    assert indices.shape == (num_clips, num_frames)
    assert indices.min() >= 0 and indices.max() < n
    assert (np.diff(indices, axis=1) >= 0).all()
    assert (np.diff(indices, axis=0) >= 0).all()
    # frame k of a clip lies in the k-th of the equal segments
    segment = np.arange(num_frames)
    assert (indices + 1 > segment * n / num_frames).all()
    assert (indices < (segment + 1) * n / num_frames).all()
    if n % (2 * num_frames * num_clips) == 0:  # no rounding: spacing is the length of a segment
        assert (np.diff(indices, axis=1) == n // num_frames).all()


@pytest.mark.parametrize("argument", ["num_video_frames", "num_frames", "frame_stride", "num_clips"])
def test_arguments_below_one(argument: str) -> None:
    arguments = {"num_video_frames": 8, "num_frames": 4, "frame_stride": 2, "num_clips": 1, argument: 0}
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        dense_clips(arguments.pop("num_video_frames"), **arguments)
    if argument != "frame_stride":
        arguments = {"num_video_frames": 8, "num_frames": 4, "num_clips": 1, argument: 0}
        with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
            uniform_segments(arguments.pop("num_video_frames"), **arguments)
