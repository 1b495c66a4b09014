"""Live windows: the answers are those to a file; what nobody has time for is skipped and counted; errors come last."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from video_papr.backbones.builders import build_backbone
from video_papr.core.errors import ConfigError, VideoDecodeError
from video_papr.data.decoding import decode_clips
from video_papr.inference.api import Pipeline
from video_papr.inference.live import LiveWindows
from video_papr.inference.windows import Timeline
from video_papr.pruning.builders import build_pruner

FPS = 25


def pipeline():
    """Reads 4 frames of 16 x 16 pixels as 4 tokens."""
    model = build_backbone("videomae_tiny", num_classes=3, num_frames=4, input_size=16)
    return Pipeline(model, build_pruner("motion", keep_ratio=0.5))


class Camera:
    """Frames at 25 per second; a frame that fills a window waits until the window before it was answered."""

    def __init__(self, frames, waits_at=()):
        self.frames, self.waits_at, self.answered = frames, set(waits_at), threading.Semaphore(0)

    def __iter__(self):
        for number, pixels in enumerate(self.frames):
            if number in self.waits_at:
                assert self.answered.acquire(timeout=60)
            yield number / FPS, pixels


@pytest.fixture(scope="module")
def video(tmp_path_factory, write_video):
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", 90, FPS)


@pytest.fixture(scope="module")
def frames(video):
    return decode_clips(video, lambda n: np.arange(n)[None]).frames[0]


@pytest.mark.parametrize(("window", "stride"), [(0.8, None), (0.8, 0.4), (0.4, 1.0), (9.0, None)])
def test_answers_are_those_to_the_file(video, frames, window, stride):
    flow, spans = pipeline(), {"window_seconds": window, "stride_seconds": stride}
    expected = list(Timeline(flow, video, **spans))
    full = [round(answer.end_seconds * FPS) for answer in expected[:-1]]
    camera = Camera(frames, [number + 1 for number in full])
    live, answers = LiveWindows(flow, camera, **spans), []
    for answer in live:
        answers.append(answer)
        camera.answered.release()
    assert (len(answers), live.skipped) == (len(expected), 0)
    for one, other in zip(answers, expected, strict=True):
        assert (one.start_seconds, one.end_seconds) == pytest.approx((other.start_seconds, other.end_seconds))
        assert torch.equal(one.views, other.views)
        assert torch.allclose(one.probabilities, other.probabilities, atol=1e-6)
        assert np.allclose(one.seconds, other.seconds, atol=1e-6)


def test_what_comes_too_fast_is_skipped_and_counted(frames):
    """All frames are there before the first answer is asked for: one window that is full, and the last one."""
    live = LiveWindows(pipeline(), iter(Camera(frames)), window_seconds=0.8, stride_seconds=0.4)
    live._fill()
    answers = list(live)
    assert [answer.end_seconds for answer in answers] == pytest.approx([3.2, 3.6])
    assert live.skipped == 6  # those that end at 0.8, 1.2, ... 2.8
    assert len(live._held) <= (0.8 + 2 * 0.4) * FPS + 1
    assert live.newest[0] == pytest.approx(89 / FPS)


def test_a_source_that_breaks_off_is_told_after_its_answers(frames):
    def broken():
        yield from Camera(frames[:30])
        raise VideoDecodeError("the cable")

    answers = []
    with pytest.raises(VideoDecodeError, match="the cable"):
        for answer in LiveWindows(pipeline(), broken(), window_seconds=0.8):
            answers.append(answer)
    assert answers[-1].end_seconds == pytest.approx(1.2)
    assert list(LiveWindows(pipeline(), iter([]), window_seconds=1)) == []
    with pytest.raises(ConfigError, match="stride_seconds=-1 must be"):
        LiveWindows(pipeline(), [], window_seconds=1, stride_seconds=-1)
