"""How many tokens a map asks for, against brute force."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from video_papr.core.errors import ConfigError
from video_papr.pruning.budget import (
    COUNTS,
    Budget,
    check_number,
    deviation_counts,
    threshold_counts,
    top_p_counts,
)
from video_papr.pruning.select import select_counts

values = st.integers(-40, 40).map(lambda n: n / 8)
maps = st.lists(st.lists(values, min_size=7, max_size=7), min_size=1, max_size=3)
shares = st.integers(1, 16).map(lambda n: n / 16)


@settings(deadline=None)
@given(rows=maps, share=shares)
def test_mass_is_the_smallest_set_that_holds_the_share(rows: list[list[float]], share: float) -> None:
    for row, count in zip(rows, top_p_counts(torch.tensor(rows), share).tolist(), strict=True):
        mass = sorted((value - min(row) for value in row), reverse=True)
        if sum(mass) == 0:
            assert count == 0
        else:
            assert sum(mass[:count]) >= share * sum(mass) > sum(mass[: count - 1])


@settings(deadline=None)
@given(rows=maps, threshold=st.integers(0, 16).map(lambda n: n / 16))
def test_threshold_lies_between_the_smallest_and_the_largest_value(
    rows: list[list[float]], threshold: float
) -> None:
    for row, count in zip(rows, threshold_counts(torch.tensor(rows), threshold).tolist(), strict=True):
        low, high = min(row), max(row)
        above = [value for value in row if value - low >= threshold * (high - low)]
        assert count == (len(above) if high > low else 0)


@settings(deadline=None)
@given(rows=maps, deviations=st.sampled_from([-1.5, -0.5, 0.0, 0.5, 1.0]), some=st.booleans())
def test_the_deviation_is_that_of_the_tokens_themselves(
    rows: list[list[float]], deviations: float, some: bool
) -> None:
    """pstdev, not the estimate for a population that they were drawn from."""
    there = [0, 2, 3, 6] if some else list(range(7))
    present = torch.zeros(len(rows), 7, dtype=torch.bool)
    present[:, there] = True
    counts = deviation_counts(torch.tensor(rows), deviations, present if some else None)
    for row, count in zip(rows, counts.tolist(), strict=True):
        own = [row[token] for token in there]
        level = fmean(own) - deviations * pstdev(own)
        assert count == sum(value >= level - 1e-8 for value in own)


@settings(deadline=None)
@given(rows=maps, kind=st.sampled_from(list(COUNTS)), low=shares, high=shares)
def test_counts_keep_to_the_bounds_and_to_their_own_clip(
    rows: list[list[float]], kind: str, low: float, high: float
) -> None:
    budget = Budget(kind, 0.5, min(low, high), max(low, high))
    significance = torch.tensor(rows).view(-1, 1, 1, 7)
    counts = budget.counts(significance)
    assert (counts >= max(1, math.floor(7 * budget.min_keep))).all()
    assert (counts <= max(1, math.floor(7 * budget.max_keep))).all()
    alone = torch.cat([budget.counts(clip[None]) for clip in significance])
    assert torch.equal(counts, alone)


def test_bounds_belong_to_the_range() -> None:
    for value in (0, 0.5, 1):
        assert check_number("share", value, 0, 1) == value
    for value in (-1e-9, 1 + 1e-9, math.nan):
        with pytest.raises(ConfigError, match=r"^pruner\.share=.* must be a number from 0 to 1$"):
            check_number("share", value, 0, 1)
    assert Budget("top_p", 0.5, 0.3, 0.3).counts(torch.rand(2, 1, 2, 5)).tolist() == [3, 3]
    with pytest.raises(ConfigError, match=r"^pruner\.min_keep=0\.3 must be at most pruner\.max_keep=0\.2$"):
        Budget("top_p", 0.5, 0.3, 0.2)


@pytest.mark.parametrize("kind", ["top_p", "threshold"])
def test_scale_and_offset_of_a_map_do_not_matter(kind: str) -> None:
    significance = torch.rand(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    budget = Budget(kind, 0.4)
    assert torch.equal(budget.counts(significance), budget.counts(7 * significance - 3))


def test_clear_clips_keep_fewer_tokens_than_unclear_ones() -> None:
    peak, flat = torch.zeros(1, 1, 8, 8), torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    peak[..., 2:4, 2:4] = 1
    both = torch.cat([peak, flat])
    assert Budget("top_p", 0.9).counts(both)[0] == 4
    assert Budget("top_p", 0.9).counts(both)[1] > 30
    assert Budget("fixed", 0.25).counts(both).tolist() == [16, 16]


def hard_maps() -> list[Tensor]:
    nan, inf = math.nan, math.inf
    rows = [[0.0] * 4, [nan] * 4, [inf] * 4, [-inf] * 4, [1e38, -1e38, 0.0, 0.0], [nan, 1.0, inf, 0.0]]
    return [torch.tensor(row).view(1, 1, 2, 2) for row in rows]


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("significance", hard_maps(), ids=lambda m: str(m.flatten().tolist()))
def test_maps_without_contrast_or_with_values_that_are_no_numbers(kind: str, significance: Tensor) -> None:
    counts = Budget(kind, 0.5, min_keep=0.5).counts(significance)
    assert 2 <= counts.item() <= 4
    row = select_counts(significance, counts).keep_idx[0].tolist()
    assert row == sorted(set(row))


@pytest.mark.parametrize("kind", ["top_p", "threshold", "deviation"])
@pytest.mark.parametrize("value", [0.3, 0.6, 0.9])
def test_what_is_no_number_counts_as_the_smallest_and_infinity_as_the_largest(
    kind: str, value: float
) -> None:
    nan, inf = math.nan, math.inf
    odd = torch.tensor([[nan, 3.0, inf, 1.0, -inf, 2.0], [inf, 0.0, 0.5, -inf, inf, nan]])
    plain = torch.tensor([[1.0, 3.0, 3.0, 1.0, 1.0, 2.0], [0.5, 0.0, 0.5, 0.0, 0.5, 0.0]])
    assert torch.equal(COUNTS[kind](odd, value), COUNTS[kind](plain, value))
