"""What is drawn when."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.training.augment import unchanged
from video_papr.training.curriculum import Curriculum
from video_papr.training.store import ClipStore


def store(value, clips=5):
    """Clips whose pixels say which store and which row they come from; the label is the row."""
    frames = np.full((clips, 2, 3, 3, 3), value, np.uint8)
    frames[..., 0] = np.arange(clips)[:, None, None, None]
    return ClipStore(frames, np.arange(clips), ())


def curriculum(count, full_at):
    stores = [store(100 + i) for i in range(count)]
    return Curriculum(stores, full_at=full_at, augment=unchanged, colors=False)


@settings(deadline=None)
@given(count=st.integers(1, 5), full_at=st.floats(0, 1), places=st.lists(st.floats(0, 1), min_size=2))
def test_shares_sum_to_one_and_move_from_easy_to_full(count, full_at, places):
    plan = curriculum(count, full_at)
    rows = np.array([plan.shares(progress) for progress in sorted(places)])
    assert (rows >= 0).all()
    np.testing.assert_allclose(rows.sum(1), 1, atol=1e-9)
    assert ((rows > 1e-9).sum(1) <= 2).all()  # a mixture of neighbours only
    assert (np.diff(rows[:, -1]) >= -1e-9).all()
    assert (np.diff(rows[:, 0]) <= 1e-9).all()
    assert (np.diff(rows @ np.arange(count)) >= -1e-9).all()
    if full_at > 1e-6:
        assert plan.shares(0)[0] == pytest.approx(1)
    assert plan.shares(full_at)[-1] == pytest.approx(1)
    assert plan.shares(1.0)[-1] == 1


def test_batches_come_from_the_stores_in_their_shares():
    plan = curriculum(3, 0.5)
    for progress, expected in [
        (0, [400, 0, 0]),
        (0.125, [200, 200, 0]),
        (0.25, [0, 400, 0]),
        (0.5, [0, 0, 400]),
    ]:
        frames, labels, actors, _ = plan(progress, 400, torch.Generator().manual_seed(0))
        assert actors is None
        assert (frames.shape, frames.dtype, labels.dtype) == ((400, 2, 3, 3, 3), torch.uint8, torch.int64)
        counts = [int((frames[:, 0, 0, 0, 1] == 100 + i).sum()) for i in range(3)]
        assert counts == pytest.approx(expected, abs=50)
        assert torch.equal(frames[:, 0, 0, 0, 0].long(), labels), "clips keep their own labels"
        assert labels.unique().tolist() == [0, 1, 2, 3, 4]


def test_the_generator_alone_decides_and_augmentation_comes_last():
    def negative(batch, _):
        return batch._replace(frames=255 - batch.frames, labels=batch.labels + 10)

    plan = Curriculum([store(50)], full_at=0, augment=negative, colors=True)
    torch.manual_seed(0)
    frames, labels, *_ = plan(0.3, 64, torch.Generator().manual_seed(3))
    torch.manual_seed(1)
    again = plan(0.3, 64, torch.Generator().manual_seed(3))
    assert torch.equal(frames, again[0]) and torch.equal(labels, again[1])
    assert labels.min() >= 10
    assert set(frames.flatten(1).unique().tolist()) <= {*range(5), *range(251, 256), 50, 205}
    assert not torch.equal(plan(0.3, 64, torch.Generator().manual_seed(4))[1], labels)


def test_the_actors_tracks_stay_with_their_clips():
    def marked(value):
        plain = store(value)
        tracks = np.zeros((5, 2, 5), np.float32) + plain.labels[:, None, None]
        return ClipStore(plain.frames, plain.labels, (), tracks)

    plan = Curriculum([marked(100), marked(200)], full_at=1, augment=unchanged, colors=False)
    _, labels, tracks, _ = plan(0.5, 64, torch.Generator().manual_seed(0))
    assert tracks is not None and tracks.shape == (64, 2, 5)
    assert torch.equal(tracks[:, 1, 4].long(), labels)
