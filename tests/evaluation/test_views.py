from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from video_papr.evaluation.views import aggregate_views


@given(
    videos=st.integers(1, 4), views=st.integers(1, 6), classes=st.integers(1, 7), seed=st.integers(0, 1000)
)
def test_mean_of_softmaxes_of_adjacent_views(videos: int, views: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 5 * torch.randn(videos * views, classes, generator=generator)
    probs = aggregate_views(logits, views)
    assert probs.shape == (videos, classes)
    for video in range(videos):
        own = [
            logits[video * views + view].exp() / logits[video * views + view].exp().sum()
            for view in range(views)
        ]
        torch.testing.assert_close(probs[video], sum(own) / views)
    torch.testing.assert_close(probs.sum(1), torch.ones(videos))


def test_softmax_comes_before_the_mean() -> None:
    """One very sure view must not outvote two others, as it would in a mean of logits."""
    probs = aggregate_views(torch.tensor([[100.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), 3)
    assert probs[0, 1] > 0.48
    assert aggregate_views(torch.tensor([[100.0, 0.0], [0.0, 3.0], [0.0, 3.0]]), 3)[0].argmax() == 1


def test_half_precision_logits_give_float32_probabilities() -> None:
    probs = aggregate_views(torch.randn(4, 400).bfloat16(), 2)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs.sum(1), torch.ones(2))


@pytest.mark.parametrize(("rows", "views"), [(4, 3), (4, 0), (4, -1)])
def test_rows_must_be_whole_videos(rows: int, views: int) -> None:
    with pytest.raises(ValueError, match="whole videos"):
        aggregate_views(torch.zeros(rows, 2), views)
