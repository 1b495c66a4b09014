import numpy as np
import torch

from video_papr.core.types import TokenGrid, TokenSelection
from video_papr.data.datasets import VideoSample
from video_papr.synthetic.oracle import actor_share

GRID = TokenGrid(2, 4, 4)
TRACKS = {"a.mp4": np.array([[8, 8, 6, 0, 1]] * 3 + [[24, 24, 6, 0, 1]] * 3, dtype=np.float32)}


def sample(indices, name="a.mp4"):
    frames = torch.zeros(len(indices), 2, 32, 32, 3, dtype=torch.uint8)
    return VideoSample(
        index=0,
        name=name,
        label=0,
        frames=frames,
        error=None,
        decode_ms=1.0,
        frame_indices=np.array(indices),
        num_video_frames=6,
        fps=25.0,
    )


def selection(*kept):
    return TokenSelection(torch.tensor(kept), GRID)


# The actor lies in the four upper left tokens of early frames and in the four lower right ones of late frames.
UPPER, LOWER = [0, 1, 4, 5], [10, 11, 14, 15]


def test_share_of_one_clip():
    early_then_late = sample([[0, 5]])
    assert actor_share(TRACKS, early_then_late, selection([*UPPER, *(16 + i for i in LOWER)])) == 1.0
    assert actor_share(TRACKS, early_then_late, selection([*UPPER, *(16 + i for i in UPPER)])) == 0.5
    assert actor_share(TRACKS, early_then_late, selection([*LOWER, *(16 + i for i in UPPER)])) == 0.0


def test_share_over_clips_uses_the_frames_of_each():
    two_clips = sample([[0, 1], [4, 5]])
    upper, lower = [*UPPER, *(16 + i for i in UPPER)], [*LOWER, *(16 + i for i in LOWER)]
    assert actor_share(TRACKS, two_clips, selection(upper, lower)) == 1.0
    assert actor_share(TRACKS, two_clips, selection(lower, lower)) == 0.5


def test_unknown_actor():
    assert actor_share(TRACKS, sample([[0, 1]], name="b.mp4"), selection(UPPER)) is None
    outside = {"a.mp4": np.full((6, 5), -50.0, dtype=np.float32)}
    assert actor_share(outside, sample([[0, 1]]), selection(UPPER)) is None
