"""Patch similarity against brute force."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from video_papr.core.types import TokenGrid
from video_papr.pruning.scorers.similarity import SimilarityPruner
from video_papr.pruning.scorers.token_similarity import best_of_cells, mean_similarity, representatives
from video_papr.pruning.select import select_tokens

GRID = TokenGrid(2, 4, 4)


def tokens(batch: int = 2, count: int = 32, dim: int = 5, seed: int = 0) -> Tensor:
    """float64; a few centres with noise, so that there are near and far neighbours."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, dim, generator=generator, dtype=torch.float64)
    which = torch.randint(0, 4, (batch, count), generator=generator)
    return centres[which] + 0.2 * torch.randn(batch, count, dim, generator=generator, dtype=torch.float64)


def cosine(clip: Tensor) -> Tensor:
    """(N, D) -> (N, N), one pair at a time; a zero vector is like nothing."""
    return torch.stack([F.cosine_similarity(one[None], clip, dim=1) for one in clip])


shapes = {
    "batch": st.integers(1, 3),
    "count": st.integers(1, 20),
    "dim": st.integers(1, 8),
    "seed": st.integers(0, 99),
}


@settings(deadline=None, max_examples=40)
@given(**shapes)
def test_mean_similarity_equals_brute_force(batch: int, count: int, dim: int, seed: int) -> None:
    given_tokens = tokens(batch, count, dim, seed)
    given_tokens[0, count // 2] = 0
    for clip, found in zip(given_tokens, mean_similarity(given_tokens), strict=True):
        pairs = cosine(clip).fill_diagonal_(0)
        torch.testing.assert_close(found, pairs.sum(1) / max(count - 1, 1), rtol=0, atol=1e-9)
    assert mean_similarity(given_tokens.float()).dtype == torch.float32
    assert mean_similarity(given_tokens.bfloat16()).dtype == torch.float32


def greedy(clip: Tensor, significance: Tensor, kept: Tensor, tau: float) -> Tensor:
    """The loop over single tokens that `representatives` runs in rounds."""
    pairs, kept = cosine(clip), kept.clone()
    for token in significance.argsort(descending=True, stable=True).tolist():
        kept[token] |= not (pairs[token][kept] > tau).any()
    return kept


@settings(deadline=None, max_examples=40)
@given(**shapes, tau=st.sampled_from([-0.5, 0.3, 0.9, 0.97, 0.99]), seeds=st.booleans())
def test_representatives_equal_the_greedy_loop(
    batch: int, count: int, dim: int, seed: int, tau: float, seeds: bool
) -> None:
    given_tokens = tokens(batch, count, dim, seed)
    generator = torch.Generator().manual_seed(seed)
    significance = torch.rand(batch, count, generator=generator)
    kept = torch.rand(batch, count, generator=generator) < (0.2 if seeds else -1)
    found = representatives(given_tokens, significance, kept, tau=tau)
    for clip, scores, before, after in zip(given_tokens, significance, kept, found, strict=True):
        assert torch.equal(after, greedy(clip, scores, before, tau))
        near = cosine(clip).fill_diagonal_(-2) > tau
        assert near[~after][:, after].any(1).all()  # every dropped token has a kept neighbour
        assert not near[after & ~before][:, after].any()  # and nobody was added for nothing


@settings(deadline=None, max_examples=30)
@given(grid=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 99))
def test_best_of_cells(grid: tuple[int, int, int], seed: int) -> None:
    scores = -torch.rand(2, *grid, generator=torch.Generator().manual_seed(seed))
    found = best_of_cells(scores)
    expected = torch.zeros_like(found)
    for clip in range(2):
        for t in range(0, grid[0], 2):
            for y in range(0, grid[1], 4):
                for x in range(0, grid[2], 4):
                    cell = scores[clip, t : t + 2, y : y + 4, x : x + 4]
                    at = (cell == cell.max()).nonzero()[0] + torch.tensor([t, y, x])
                    expected[(clip, *at.tolist())] = True
    assert torch.equal(found, expected)


KINDS = [
    {"mode": mode, "diversity": diversity}
    for mode in ("ratio", "threshold", "adaptive")
    for diversity in ("none", "cluster", "grid")
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
def test_modes(kind: dict[str, str]) -> None:
    given_tokens = tokens(3)
    pruner = SimilarityPruner(**kind, keep_ratio=0.4, tau=0.1, cluster_tau=0.95, min_keep=0.01)
    selection = pruner.choose(given_tokens, GRID)
    mask, similar = selection.mask().flatten(1), mean_similarity(given_tokens)
    if kind["mode"] == "ratio":
        assert selection.counts().tolist() == [12, 12, 12]
        if kind["diversity"] == "none":
            expected = select_tokens(-similar.view(3, *GRID.shape), keep_ratio=0.4)
            assert torch.equal(selection.keep_idx, expected.keep_idx)
    else:
        level = 0.1 if kind["mode"] == "threshold" else similar.mean(1, keepdim=True)
        own = similar <= level
        if kind["diversity"] == "none":
            assert torch.equal(mask, own)
        elif kind["diversity"] == "grid":
            assert torch.equal(mask, own | best_of_cells(-similar.view(3, *GRID.shape)).flatten(1))
        else:
            assert torch.equal(mask, representatives(given_tokens, -similar, own, tau=0.95))
    for row in range(3):
        alone = pruner.choose(given_tokens[row : row + 1], GRID)
        assert torch.equal(alone.mask()[0].flatten(), mask[row])
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    if kind["diversity"] != "grid":  # which looks at places
        assert torch.equal(pruner.choose(given_tokens[:, order], GRID).mask().flatten(1), mask[:, order])


def test_cluster_keeps_the_most_significant_representatives_when_there_is_no_room_for_all() -> None:
    alone = torch.eye(32, dtype=torch.float64)[None]
    alone[0, :, 0] += torch.linspace(0, 0.9, 32, dtype=torch.float64)  # the later, the more alike
    pruner = SimilarityPruner(diversity="cluster", keep_ratio=0.25, cluster_tau=0.99)
    assert torch.equal(
        pruner.choose(alone, GRID).keep_idx,
        select_tokens(-mean_similarity(alone).view(1, *GRID.shape), keep_ratio=0.25).keep_idx,
    )


def test_uniform_background_is_not_dropped_whole() -> None:
    """Mean similarity alone drops every token of a large flat background; `cluster` leaves one for it."""
    clip = torch.zeros(1, 32, 8, dtype=torch.float64)
    clip[0, :, 0] = 1
    clip[0, 28:] = torch.eye(8, dtype=torch.float64)[1:5]
    plain = SimilarityPruner(mode="threshold", tau=0.5).choose(clip, GRID).mask().flatten()
    assert plain.nonzero().flatten().tolist() == [28, 29, 30, 31]
    cluster = (
        SimilarityPruner(mode="threshold", tau=0.5, diversity="cluster").choose(clip, GRID).mask().flatten()
    )
    assert cluster[28:].all()
    assert cluster[:28].sum() == 1


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind.values()))
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_constant_tokens(kind: dict[str, str], value: float) -> None:
    selection = SimilarityPruner(**kind).choose(torch.full((2, 32, 4), value), GRID)
    assert torch.equal(selection.keep_idx, selection.keep_idx.sort(1).values)
    assert (selection.counts() >= 1).all()
    assert SimilarityPruner().score(torch.full((2, 32, 4), value), GRID).isfinite().all()
