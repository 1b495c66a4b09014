"""Tokens that a backbone does without in training: how many, which, and where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from video_papr.core.types import TokenGrid
from video_papr.pruning.budget import keep_count
from video_papr.synthetic.tracks import actor_tokens
from video_papr.training.dropping import SCORES, Dropping, actor_scores, map_scores, random_scores
from video_papr.training.store import Batch

GRID = TokenGrid(4, 8, 8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(clips, *, tracked=True):
    """Clips without frames; the actor of each stays in one place."""
    still = torch.rand(clips, 1, 5, generator=rng()) * torch.tensor([0.6, 0.6, 0.1, 6, 1])
    still = still + torch.tensor([0.2, 0.2, 0.1, 0, 0])
    tracks = still.expand(-1, 8, -1) if tracked else None
    return Batch(
        torch.zeros(clips, 8, 0, 0, 3, dtype=torch.uint8), torch.zeros(clips, dtype=torch.int64), tracks
    )


def masks(keep_by, share, clips, grid=GRID, seed=0):
    kept = Dropping((share, share), keep_by).choose(clips, grid, rng(seed))
    assert kept is not None
    chosen = torch.zeros(len(clips.labels), grid.num_tokens, dtype=torch.bool).scatter_(1, kept, True)
    return chosen.view(-1, *grid.shape)


@settings(max_examples=60, deadline=None)
@given(
    keep_by=st.sampled_from(sorted(SCORES)),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    low=st.floats(0.01, 1),
    width=st.floats(0, 1),
    tracked=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_as_many_sorted_tokens_for_every_clip(keep_by, shape, low, width, tracked, seed):
    grid, high = TokenGrid(*shape), min(1.0, low + width)
    clips = batch(5, tracked=tracked)
    if tracked:
        clips = clips._replace(tracks=clips.tracks[:, :1].expand(-1, 2 * grid.frames, -1))
    kept = Dropping((low, high), keep_by).choose(clips, grid, rng(seed))
    again = Dropping((low, high), keep_by).choose(clips, grid, rng(seed))
    assert kept is not None and again is not None and torch.equal(kept, again)
    assert Dropping(None, keep_by).choose(clips, grid, rng(seed)) is None
    assert keep_count(low, grid.num_tokens) <= kept.shape[1] <= keep_count(high, grid.num_tokens)
    assert kept.shape[0] == 5 and (kept.diff(dim=1) > 0).all()
    assert kept.min() >= 0 and kept.max() < grid.num_tokens


@pytest.mark.parametrize("keep_by", sorted(SCORES))
def test_every_place_is_kept_as_often_when_nobody_knows_the_actor(keep_by):
    often = masks(keep_by, 0.3, batch(2000, tracked=False)).float().mean(0)
    assert (often - keep_count(0.3, 256) / 256).abs().max() < 5 * 0.5 / 2000**0.5


def test_the_actor_comes_first_where_it_is_preferred_enough():
    """Some clips keep all of it, some no more than an even draw does; never more tokens than asked for."""
    clips = batch(400)
    assert clips.tracks is not None
    actor = actor_tokens(clips.tracks, GRID)

    def share(keep_by):
        return (masks(keep_by, 0.3, clips) & actor).sum((1, 2, 3)) / actor.sum((1, 2, 3))

    assert actor.sum((1, 2, 3)).max() < keep_count(0.3, 256)
    even = share("random")
    assert even.mean() == pytest.approx(0.3, abs=0.03) and even.max() < 1
    for keep_by, whole in (("actor", 1 / 3), ("map", 1 / 4), ("blobs", 1 / 4), ("actor_blobs", 1 / 3)):
        found = share(keep_by)
        assert (found == 1).float().mean() > whole - 0.08
        assert (found < 0.6).float().mean() > (0.2 if keep_by != "actor_blobs" else 0.05)


def test_scores_of_an_actor_grow_with_the_preference_alone():
    """What is drawn beside the actor does not depend on where it is."""
    with_actor, without = batch(50), batch(50, tracked=False)
    assert with_actor.tracks is not None
    actor = actor_tokens(with_actor.tracks, GRID)
    for scores in (actor_scores, map_scores):
        more = scores(with_actor, GRID, rng()) - scores(without, GRID, rng())
        far = torch.nn.functional.max_pool3d(actor.float(), 3, stride=1, padding=1) == 0
        assert more.min() > -1e-5
        assert more[far].abs().max() < 1e-5


def test_kept_tokens_of_a_map_lie_together():
    """The share of kept tokens whose right neighbour is kept, and whose place in the next frame is."""

    def together(keep_by):
        kept = masks(keep_by, 0.3, batch(300, tracked=False)).float()
        beside = (kept[..., 1:] * kept[..., :-1]).sum() / kept[..., :-1].sum()
        later = (kept[:, 1:] * kept[:, :-1]).sum() / kept[:, :-1].sum()
        return float(beside), float(later)

    even = random_scores(batch(1), GRID, rng())
    assert even.min() >= 0 and even.max() <= 1
    assert together("random") == pytest.approx((0.3, 0.3), abs=0.02)
    assert together("actor") == pytest.approx((0.3, 0.3), abs=0.02)
    assert min(together("map")) > 0.55
    assert min(together("blobs")) > min(together("map"))
    assert together("actor_blobs") == together("blobs")  # without an actor there is nothing to prefer
