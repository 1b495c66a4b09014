"""Frame indices: examples worked out by hand, and what must hold for every video and clip."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_papr.core.errors import ConfigError
from video_papr.data.sampling import (
    choose_sampler,
    dense_clips,
    frames_needed,
    mmaction,
    uniform_segments,
    videomae_dense,
    videomae_uniform,
    vivit_dense,
    vjepa2,
)

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


# The frames of published evaluations, worked out on paper from their descriptions


def steps(start: int, stride: int, count: int) -> list[int]:
    return list(range(start, start + stride * count, stride))


@pytest.mark.parametrize(
    ("num_video_frames", "starts"),
    [
        # thinned to 75 frames, 59 of them free: 59 / 4 = 14.75, 29.5, 44.25, 59, rounded down, times the stride
        (300, [0, 56, 116, 176, 236]),
        # thinned to 63 frames, 47 free: 11.75, 23.5, 35.25, 47
        (250, [0, 44, 92, 140, 188]),
        # just long enough for one clip; thinning leaves 16 frames of 61 to 64
        (61, [0, 0, 0, 0, 0]),
        (64, [0, 0, 0, 0, 0]),
        (65, [0, 0, 0, 0, 4]),
    ],
)
def test_videomae_on_kinetics(num_video_frames: int, starts: list[int]) -> None:
    """16 frames, sampling rate 4, five clips."""
    indices = videomae_dense(num_video_frames, num_frames=16, frame_stride=4, num_clips=5)
    assert indices.tolist() == [steps(start, 4, 16) for start in starts]


def test_videomae_on_a_short_video_of_kinetics() -> None:
    """50 frames: thinned to 0, 4, ..., 48, and the last of these is repeated."""
    indices = videomae_dense(50, num_frames=16, frame_stride=4, num_clips=5)
    assert indices.tolist() == [[*steps(0, 4, 13), 48, 48, 48]] * 5


def test_videomae_on_something_something() -> None:
    """16 frames, two clips: where the 16 segments begin, and their middles, rounded down."""
    indices = videomae_uniform(40, num_frames=16, num_clips=2)  # segments of 2.5 frames
    assert indices.tolist() == [
        [0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27, 30, 32, 35, 37],
        [1, 3, 6, 8, 11, 13, 16, 18, 21, 23, 26, 28, 31, 33, 36, 38],
    ]
    assert videomae_uniform(48, num_frames=16, num_clips=2).tolist() == [steps(0, 3, 16), steps(1, 3, 16)]
    assert videomae_uniform(8, num_frames=16, num_clips=2).tolist() == [[i // 2 for i in range(16)]] * 2


@pytest.mark.parametrize(
    ("num_video_frames", "starts"),
    [
        (250, [0, 62, 124, 186]),  # 186 frames free
        (300, [0, 78, 157, 236]),  # 236 free: 78.7, 157.3, 236, rounded down
        (64, [0, 0, 0, 0]),
        (63, [0, 0, 0, 0]),
    ],
)
def test_vivit_on_kinetics(num_video_frames: int, starts: list[int]) -> None:
    """32 frames, stride 2, four clips."""
    indices = vivit_dense(num_video_frames, num_frames=32, frame_stride=2, num_clips=4)
    assert indices.tolist() == [steps(start, 2, 32) for start in starts]


def test_vivit_shows_a_short_video_again() -> None:
    indices = vivit_dense(50, num_frames=32, frame_stride=2, num_clips=4)
    assert indices.tolist() == [[*steps(0, 2, 25), *steps(0, 2, 7)]] * 4
    odd = vivit_dense(5, num_frames=4, frame_stride=2, num_clips=1)
    assert odd.tolist() == [[0, 2, 4, 1]]


@pytest.mark.parametrize("num_clips", [1, 2, 3, 5, 9])
def test_mmaction_in_test_mode(num_clips: int) -> None:
    """Starts over the free frames, of two equally near ones the even one; frames are counted modulo the video."""
    for n in range(1, 1696):
        free = max(n - 61, 0)
        starts = [round(Fraction(clip * free, max(num_clips - 1, 1))) for clip in range(num_clips)]
        expected = [[(start + 4 * i) % n for i in range(16)] for start in starts]
        if num_clips == 1:
            expected = [[(free // 2 + 4 * i) % n for i in range(16)]]
        found = mmaction(n, num_frames=16, frame_stride=4, num_clips=num_clips)
        assert found.tolist() == expected
        assert found.dtype == np.int64


@pytest.mark.parametrize("num_clips", [1, 2, 3])
def test_vjepa2_by_the_rule_of_its_evaluation(num_clips: int) -> None:
    """16 frames, step 4: as its loader says it, segment by segment."""
    for n in range(1, 400):
        expected = []
        for clip in range(num_clips):
            if n // num_clips > 64:
                chosen = [min(int(i * 64 / 15), 63) + clip * (n // num_clips) for i in range(16)]
            else:
                last, count = min(64, n) - 1, (min(64, n) - 1) // 4
                chosen = [int(i * last / (count - 1)) if count > 1 else 0 for i in range(count)]
                chosen = [min(i, max(last - 1, 0)) for i in (chosen + [last] * 16)[:16]]
                chosen = [i + clip * (max(n - 64, 0) // max(num_clips - 1, 1)) for i in chosen]
            expected.append(chosen)
        found = vjepa2(n, num_frames=16, frame_stride=4, num_clips=num_clips)
        assert found.tolist() == expected
        assert found.min() >= 0 and found.max() < n
    assert vjepa2(16, num_frames=3, frame_stride=2, num_clips=2).tolist() == [[0, 3, 5], [8, 11, 13]]


def test_docstring_examples_of_the_published_evaluations() -> None:
    small = {"num_frames": 3, "frame_stride": 2, "num_clips": 3}
    assert mmaction(13, **small).tolist() == [[0, 2, 4], [4, 6, 8], [8, 10, 12]]
    assert mmaction(13, num_frames=3, frame_stride=2, num_clips=1).tolist() == [[4, 6, 8]]
    assert videomae_dense(12, **small).tolist() == [[0, 2, 4], [2, 4, 6], [6, 8, 10]]
    assert vivit_dense(12, **small).tolist() == [[0, 2, 4], [3, 5, 7], [6, 8, 10]]
    assert videomae_uniform(12, num_frames=3, num_clips=2).tolist() == [[0, 4, 8], [2, 6, 10]]


@given(counts, clip_lengths, few, few)
def test_published_dense_clips_always(n: int, num_frames: int, frame_stride: int, num_clips: int) -> None:
    """Against the same rules in floats; and never further than a stride from `dense_clips`."""
    asked = {"num_frames": num_frames, "frame_stride": frame_stride, "num_clips": num_clips}
    ours = dense_clips(n, **asked)
    videomae, vivit = videomae_dense(n, **asked), vivit_dense(n, **asked)
    for indices in (videomae, vivit):
        assert indices.shape == ours.shape and indices.dtype == np.int64
        assert indices.min() >= 0 and indices.max() < n
    assert (np.diff(videomae, axis=1) >= 0).all() and (videomae % frame_stride == 0).all()
    assert np.abs(videomae - ours).max() < 2 * frame_stride
    if n >= num_frames * frame_stride:
        assert (np.diff(vivit, axis=1) == frame_stride).all()
        assert np.abs(vivit - ours).max() <= frame_stride
    if num_clips == 5:  # quarters are exact in floats
        thinned = np.arange(0, n, frame_stride)
        thinned = np.append(thinned, [thinned[-1]] * max(num_frames - len(thinned), 0))
        step = max((len(thinned) - num_frames) / 4, 0)
        expected = [thinned[int(clip * step) : int(clip * step) + num_frames] for clip in range(5)]
        assert np.array_equal(videomae, np.stack(expected))


@given(counts, st.sampled_from([1, 2, 4, 8, 16, 32]))
def test_published_uniform_clips_always(n: int, num_frames: int) -> None:
    tick = n / num_frames  # exact in floats: a division by a power of two
    middles = [int(tick / 2 + tick * segment) for segment in range(num_frames)]
    begins = [int(tick * segment) for segment in range(num_frames)]
    assert videomae_uniform(n, num_frames=num_frames, num_clips=2).tolist() == [begins, middles]
    assert videomae_uniform(n, num_frames=num_frames, num_clips=1).tolist() == [middles]


@pytest.mark.parametrize("sample", [dense_clips, videomae_dense, vivit_dense, mmaction])
@given(num_frames=clip_lengths, frame_stride=few)
def test_frames_needed(sample: Callable[..., np.ndarray], num_frames: int, frame_stride: int) -> None:
    """With so many frames no clip repeats one, with one fewer it does."""
    enough = frames_needed("dense", num_frames=num_frames, frame_stride=frame_stride)
    for n in (enough, enough - 1):
        if n:
            clip = sample(n, num_frames=num_frames, frame_stride=frame_stride, num_clips=1)[0]
            assert (np.diff(clip) != frame_stride).any() == (n < enough)
    assert frames_needed("videomae_uniform", num_frames=num_frames, frame_stride=frame_stride) == num_frames


@pytest.mark.parametrize(
    ("sample", "num_video_frames", "expected"),
    [
        (videomae_dense, 20, [6, 8, 10]),  # 10 frames are left, 7 of them free: the fourth is the first
        (videomae_dense, 18, [6, 8, 10]),
        (videomae_dense, 17, [6, 8, 10]),
        (videomae_dense, 16, [4, 6, 8]),
        (vivit_dense, 20, [7, 9, 11]),  # a span of 6 leaves 14 free
        (vivit_dense, 19, [6, 8, 10]),
        (vivit_dense, 7, [0, 2, 4]),
    ],
)
def test_one_clip_of_the_published_evaluations_sits_in_the_middle(
    sample: Callable[..., np.ndarray], num_video_frames: int, expected: list[int]
) -> None:
    assert sample(num_video_frames, num_frames=3, frame_stride=2, num_clips=1).tolist() == [expected]


@pytest.mark.parametrize(
    ("name", "sample"),
    [("dense", dense_clips), ("videomae_dense", videomae_dense), ("vivit_dense", vivit_dense)]
    + [("uniform", uniform_segments), ("videomae_uniform", videomae_uniform)],
)
def test_samplers_by_name(name: str, sample: Callable[..., np.ndarray]) -> None:
    options = {"num_frames": 4, "num_clips": 3}
    stride = {} if name.endswith("uniform") else {"frame_stride": 5}
    chosen = choose_sampler(name, **options, frame_stride=5)
    for n in (7, 50):
        np.testing.assert_array_equal(chosen(n), sample(n, **options, **stride))
    with pytest.raises(
        ConfigError, match=r"^dataset\.sampling='sparse' is unknown; use one of dense, videomae_d"
    ):
        choose_sampler("sparse", **options, frame_stride=5)
