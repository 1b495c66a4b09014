"""Which K of N blocks to prune: a seeded evolutionary search over masks, or all of them where they are few.

After UPDP (Liu et al., AAAI 2024): a child swaps a pruned block for another one (mutation), or draws its K blocks from
the union of its parents' (crossover). Our choices: the better half of a generation are the parents; half of the
children come from either way; no mask is scored twice; a mask above the budget is repaired, by pruning the block that
saves most in place of the one that saves least, until it fits.

A mask is a tuple of K ascending places in 0..N-1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle
from math import comb

import numpy as np

from ..core.errors import ConfigError

Mask = tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """A limit for what is left of a cost when blocks are pruned."""

    total: float  # the cost with nothing pruned, e.g. milliseconds
    saved: tuple[float, ...]  # (N,) what pruning each block saves; may be negative
    limit: float | None = None  # no mask may cost more; None: any may

    def cost(self, mask: Mask) -> float:
        """What a mask leaves."""
        return self.total - sum(self.saved[place] for place in mask)

    def fits(self, mask: Mask) -> bool:
        rounding = 1e-9 * abs(self.total)
        return self.limit is None or self.cost(mask) <= self.limit + rounding

    def repaired(self, mask: Mask) -> Mask:
        """The mask, with as many blocks exchanged as it takes to fit."""
        chosen = set(mask)
        while not self.fits(tuple(sorted(chosen))):
            worst = min(chosen, key=lambda place: (self.saved[place], place))
            rest = set(range(len(self.saved))) - chosen
            best = max(rest, key=lambda place: (self.saved[place], -place))
            if self.saved[best] <= self.saved[worst]:  # there is none cheaper, see `check_budget`
                break
            chosen = (chosen - {worst}) | {best}
        return tuple(sorted(chosen))


@dataclass(frozen=True)
class Found:
    """The outcome of a search: the best mask, its score, and every score in the order in which it was taken."""

    mask: Mask
    score: float
    scores: dict[Mask, float]


def check_count(count: int, blocks: int, *, keep_one: bool, key: str = "depth.prune") -> None:
    """Refuses a number of blocks that cannot be pruned. `keep_one`: one block has to stay, because the others go.

    Raises ConfigError: it is not 1 to `blocks`, or `blocks` - 1.
    """
    most = blocks - 1 if keep_one else blocks
    if not 1 <= count <= most:
        reason = f" (of {blocks}, one must stay)" if keep_one else " (there are no more)"
        raise ConfigError(f"{key}={count}: must be 1 to {most} blocks{reason}")


def check_budget(budget: Budget, count: int, *, key: str = "depth.max_latency") -> None:
    """Refuses a budget that no `count` blocks can meet. Raises ConfigError: the line says how far it goes."""
    fastest = tuple(sorted(np.argsort(budget.saved, kind="stable")[::-1][:count].tolist()))
    if not budget.fits(fastest):
        assert budget.limit is not None
        raise ConfigError(
            f"{key}={budget.limit / budget.total:.4g}: pruning {count} blocks leaves at least "
            f"{budget.cost(fastest) / budget.total:.4g} of the measured time ({budget.cost(fastest):.3g} of "
            f"{budget.total:.3g} ms)"
        )


@dataclass(frozen=True)
class Evolution:
    """How `search` goes about it."""

    population: int = 12  # masks that live from one generation to the next
    generations: int = 8  # rounds of children
    exhaustive: int = 64  # spaces with at most so many masks are scored in whole
    seed: int = 0


class Scores(dict[Mask, float]):
    """The scores of masks, each taken once.

    Args:
        fitness: of a mask; must not depend on what was asked before.
        known: scores of an earlier, interrupted search with the same settings; they are not taken again.
    """

    def __init__(
        self,
        fitness: Callable[[Mask], float],
        known: Mapping[Mask, float] | None = None,
        on_score: Callable[[Mask, float], None] | None = None,
    ) -> None:
        super().__init__()
        self._fitness, self._known, self._on_score = fitness, dict(known or {}), on_score

    def __missing__(self, mask: Mask) -> float:
        if mask in self._known:
            score = self._known[mask]
        else:
            score = self._fitness(mask)
            if self._on_score is not None:
                self._on_score(mask, score)
        self[mask] = score
        return score

    def found(self, mask: Mask) -> Found:
        """The outcome with `mask` as the choice."""
        return Found(mask, self[mask], dict(self))


def search(
    scores: Scores,
    *,
    blocks: int,
    count: int,
    budget: Budget | None = None,
    evolution: Evolution | None = None,
) -> Found:
    """The mask of `count` of `blocks` blocks with the highest score; among equals the cheapest, then the first.

    Args:
        budget: masks above it are never scored.

    Raises ConfigError: a count or a budget that cannot be met.
    """
    check_count(count, blocks, keep_one=False)
    limit, evolution = budget or Budget(0.0, (0.0,) * blocks), evolution or Evolution()
    check_budget(limit, count)

    def rank(mask: Mask) -> tuple[float, float, Mask]:
        return -scores[mask], limit.cost(mask), mask

    if comb(blocks, count) <= evolution.exhaustive:
        fitting = [mask for mask in combinations(range(blocks), count) if limit.fits(mask)]
        return scores.found(min(fitting, key=rank))
    rng, population = np.random.default_rng(evolution.seed), evolution.population
    living = sorted(
        _distinct(lambda: limit.repaired(random_mask(rng, blocks, count)), population, set()), key=rank
    )
    for _ in range(evolution.generations):
        parents = living[: max(2, population // 2)]
        children = _children(rng, parents, blocks, limit, population, set(scores))
        living = sorted([*living, *children], key=rank)[:population]
    return scores.found(min(scores, key=rank))


def greedy(scores: Scores, *, blocks: int, count: int) -> Found:
    """Drops the block whose loss hurts least, `count` times: a baseline."""
    check_count(count, blocks, keep_one=False)
    mask: Mask = ()
    for _ in range(count):
        options = [tuple(sorted((*mask, place))) for place in range(blocks) if place not in mask]
        mask = min(options, key=lambda option: (-scores[option], option))
    return scores.found(mask)


def random_mask(rng: np.random.Generator, blocks: int, count: int) -> Mask:
    """`count` of `blocks` places, each set as likely as any other."""
    return tuple(sorted(rng.permutation(blocks)[:count].tolist()))


def uniform_mask(blocks: int, count: int) -> Mask:
    """`count` of `blocks` places at even distances: a baseline."""
    return tuple((2 * number + 1) * blocks // (2 * count) for number in range(count))


def mutate(rng: np.random.Generator, mask: Mask, blocks: int) -> Mask:
    """Swaps one pruned block for one that is not; a mask of all blocks stays."""
    rest = [place for place in range(blocks) if place not in mask]
    if not rest:
        return mask
    out, into = rng.integers(len(mask)), rng.integers(len(rest))
    return tuple(sorted((*mask[:out], *mask[out + 1 :], rest[into])))


def cross(rng: np.random.Generator, one: Mask, other: Mask) -> Mask:
    """As many blocks as each parent has, drawn from the union of both."""
    union = sorted({*one, *other})
    return tuple(sorted(rng.permutation(union)[: len(one)].tolist()))


def _children(
    rng: np.random.Generator,
    parents: Sequence[Mask],
    blocks: int,
    budget: Budget,
    number: int,
    seen: set[Mask],
) -> list[Mask]:
    mutates = cycle((True, False))

    def child() -> Mask:
        one, other = (parents[int(place)] for place in rng.integers(len(parents), size=2))
        made = mutate(rng, one, blocks) if next(mutates) else cross(rng, one, other)
        return budget.repaired(made)

    return _distinct(child, number, seen)


def _distinct(draw: Callable[[], Mask], number: int, seen: set[Mask]) -> list[Mask]:
    """Up to `number` new masks; fewer when they become hard to find."""
    made: list[Mask] = []
    for _ in range(20 * number):
        mask = draw()
        if mask not in seen and mask not in made:
            made.append(mask)
            if len(made) == number:
                break
    return made
