"""The search keeps exactly K blocks and the budget, depends on its seed only, and finds what brute force finds."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from video_papr.core.errors import ConfigError
from video_papr.depth.search import (
    Budget,
    Evolution,
    Mask,
    Scores,
    check_budget,
    cross,
    greedy,
    mutate,
    random_mask,
    search,
    uniform_mask,
)


def evolve(fitness, *, blocks, count, budget=None, known=None, on_score=None, **evolution):
    scores = Scores(fitness, known, on_score)
    return search(scores, blocks=blocks, count=count, budget=budget, evolution=Evolution(**evolution))


spaces = st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
seeds = st.integers(0, 9999)


def rugged(blocks, seed):
    """A fitness with a term for every block and one for every pair."""
    rng = np.random.default_rng(seed)
    single, pair = rng.normal(size=blocks), rng.normal(size=(blocks, blocks))
    return lambda mask: float(sum(single[a] + sum(pair[a, b] for b in mask if b > a) for a in mask))


def budget_of(blocks, seed, limit=None):
    saved = np.random.default_rng(seed + 1).normal(size=blocks)
    return Budget(10.0, tuple(saved.tolist()), limit)


def is_mask(mask, blocks, count):
    return list(mask) == sorted(set(mask)) and len(mask) == count and set(mask) <= set(range(blocks))


@settings(deadline=None)
@given(space=spaces, seed=seeds, tight=st.floats(0, 1))
def test_small_spaces_give_what_brute_force_gives(space, seed, tight):
    blocks, count = space
    fitness, free = rugged(blocks, seed), budget_of(blocks, seed)
    masks = list(combinations(range(blocks), count))
    costs = sorted(map(free.cost, masks))
    limited = Budget(free.total, free.saved, costs[int(tight * (len(costs) - 1))] + 1e-9)
    found = evolve(fitness, blocks=blocks, count=count, budget=limited, exhaustive=200)
    assert found.mask == max((m for m in masks if limited.fits(m)), key=fitness)
    assert found.score == fitness(found.mask)


@settings(deadline=None, max_examples=60)
@given(space=spaces, seed=seeds, tight=st.floats(0, 1))
def test_evolution_keeps_k_and_the_budget_and_repeats_itself(space, seed, tight):
    blocks, count = space
    fitness, free = rugged(blocks, seed), budget_of(blocks, seed)
    costs = sorted(map(free.cost, combinations(range(blocks), count)))
    limited = Budget(free.total, free.saved, costs[int(tight * (len(costs) - 1))] + 1e-9)
    options = {"blocks": blocks, "count": count, "budget": limited, "exhaustive": 0, "seed": seed}
    asked: list[Mask] = []

    def count_calls(mask):
        asked.append(mask)
        return fitness(mask)

    found = evolve(count_calls, **options, population=4, generations=3)
    assert len(asked) == len(set(asked)) == len(found.scores) <= 4 + 3 * 4
    for mask in asked:
        assert is_mask(mask, blocks, count) and limited.fits(mask)
    assert found.score == max(found.scores.values())
    again = evolve(fitness, **options, population=4, generations=3)
    assert again == found and list(again.scores) == list(found.scores)


def test_evolution_reaches_the_optimum_of_a_sum():
    """24 blocks, 735,471 masks: each block has its own worth, so the best mask is known."""
    rng = np.random.default_rng(3)
    worth = rng.permutation(24)
    found = evolve(
        lambda mask: float(sum(worth[place] for place in mask)),
        blocks=24, count=8, population=24, generations=60, seed=1,
    )  # fmt: skip
    assert comb(24, 8) == 735471
    assert found.mask == tuple(sorted(np.argsort(worth)[-8:].tolist()))
    assert len(found.scores) <= 24 * 61


@pytest.mark.parametrize("exhaustive", [0, 100])
@pytest.mark.parametrize("stop", [1, 3, 7])
def test_interrupted_search_goes_on_where_it_was(stop, exhaustive):
    fitness = rugged(6, 0)
    options = {"blocks": 6, "count": 3, "exhaustive": exhaustive, "population": 4, "generations": 4}
    whole = evolve(fitness, **options)
    known: dict[Mask, float] = {}

    def until(mask):
        if len(known) == stop:
            raise KeyboardInterrupt
        return fitness(mask)

    with pytest.raises(KeyboardInterrupt):
        evolve(until, **options, on_score=known.__setitem__)
    asked: list[Mask] = []

    def count_calls(mask):
        asked.append(mask)
        return fitness(mask)

    assert evolve(count_calls, **options, known=known) == whole
    assert len(known) == stop and not set(asked) & set(known)
    assert len(asked) == len(whole.scores) - stop


def test_among_equals_the_cheapest_wins():
    found = evolve(lambda mask: 1.0, blocks=4, count=1, budget=Budget(4.0, (0.1, 0.5, 0.9, 0.9)))
    assert found.mask == (2,)


@settings(deadline=None)
@given(space=spaces, seed=seeds)
def test_operators_keep_k(space, seed):
    blocks, count = space
    rng = np.random.default_rng(seed)
    one, other = random_mask(rng, blocks, count), random_mask(rng, blocks, count)
    swapped, crossed = mutate(rng, one, blocks), cross(rng, one, other)
    for mask in (one, other, swapped, crossed, uniform_mask(blocks, count)):
        assert is_mask(mask, blocks, count)
    assert len(set(swapped) & set(one)) == (count - 1 if count < blocks else count)
    assert set(crossed) <= {*one, *other}


@settings(deadline=None)
@given(space=spaces, seed=seeds, limit=st.floats(0, 15))
def test_repair_exchanges_no_more_than_it_takes(space, seed, limit):
    blocks, count = space
    budget = budget_of(blocks, seed, limit)
    try:
        check_budget(budget, count)
    except ConfigError:
        assume(False)
    mask = random_mask(np.random.default_rng(seed), blocks, count)
    repaired = budget.repaired(mask)
    assert is_mask(repaired, blocks, count) and budget.fits(repaired)
    assert (repaired == mask) == budget.fits(mask)


def test_uniform_masks():
    assert uniform_mask(4, 1) == (2,)
    assert uniform_mask(4, 2) == (1, 3)
    assert uniform_mask(19, 6) == (1, 4, 7, 11, 14, 17)


def test_greedy_drops_the_least_important_block_each_time():
    loss = {(0,): 3, (1,): 1, (2,): 2, (0, 1): 5, (1, 2): 9, (0, 2): 0}
    found = greedy(Scores(lambda mask: -float(loss[mask])), blocks=3, count=2)
    assert found.mask == (0, 1)  # (0, 2) is better, but greedy has dropped 1 before
    assert list(found.scores) == [(0,), (1,), (2,), (0, 1), (1, 2)]
    known = dict(list(found.scores.items())[:4])
    asked: list[Mask] = []
    again = greedy(Scores(lambda mask: asked.append(mask) or -9.0, known), blocks=3, count=2)
    assert (again, asked) == (found, [(1, 2)])
