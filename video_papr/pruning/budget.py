"""How many tokens a clip keeps: the same number for every clip, or one that its own map decides.

Every rule is a pure function (map (B, N), value) -> counts (B,) int64; the best tokens up to the count are kept.

Letters: B clips, T' x H' x W' the token grid, N its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import ConfigError, check_known

BUDGET_OPTIONS = ("keep_ratio", "budget", "top_p", "threshold", "min_keep", "max_keep")


def keep_count(keep_ratio: float, num_tokens: int, counted: int = 0) -> int:
    """K = max(1, floor(keep_ratio * N)), safe from rounding (0.29 * 100 is 28.999... in floating point).

    Args:
        counted: tokens beside the N that the ratio is a share of too.
    """
    return min(num_tokens, max(1, math.floor(keep_ratio * (num_tokens + counted) + 1e-9)))


def check_ratio(key: str, value: object) -> float:
    """Returns the value as a float, or raises ConfigError unless it is a number above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise ConfigError(f"pruner.{key}={value} must be a number with 0 < {key} <= 1, e.g. 0.3")
    return float(value)


def check_number(key: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    """Returns the value as a float, or raises ConfigError unless it is a number from `low` to `high`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not low <= value <= high
    ):
        between = f" from {low:g} to {high:g}" if math.isfinite(low) else ""
        raise ConfigError(f"pruner.{key}={value} must be a number{between}")
    return float(value)


def top_p_counts(flat: Tensor, share: float) -> Tensor:
    """The size of the smallest set that holds `share` of the map's mass: (B, N) -> (B,).

    A token's mass is its value above the smallest value of its clip, so that a map of any sign and scale will do. A map
    without contrast has no mass, and keeps 0.
    """
    mass = _finite(flat)
    mass = (mass - mass.amin(1, keepdim=True)).sort(1, descending=True).values
    held = mass.cumsum(1)
    total = held[:, -1:]
    short = (held < share * total * (1 - 1e-12)).sum(1)
    return torch.where(total[:, 0] > 0, short + 1, 0)


def threshold_counts(flat: Tensor, threshold: float) -> Tensor:
    """Tokens at or above `threshold`, 0 the clip's smallest value and 1 its largest: (B, N) -> (B,).

    A map without contrast keeps 0.
    """
    values = _finite(flat)
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    above = (values - low) >= threshold * (high - low)
    return torch.where(high[:, 0] > low[:, 0], above.sum(1), 0)


def level_counts(flat: Tensor, level: float, present: Tensor | None = None) -> Tensor:
    """Tokens at or above `level` on the map's own scale, of those in `present` (B, N) bool if given: (B, N) -> (B,)."""
    above = flat >= level
    return (above if present is None else above & present).sum(1)


def deviation_counts(flat: Tensor, deviations: float, present: Tensor | None = None) -> Tensor:
    """Tokens at or above the clip's mean minus `deviations` standard deviations: (B, N) -> (B,).

    Mean, deviation and count are those of the tokens in `present` (B, N) bool, where it is given.
    """
    values = _finite(flat)
    if present is None:
        mean, deviation = values.mean(1, keepdim=True), values.std(1, correction=0, keepdim=True)
    else:
        number = present.sum(1, keepdim=True)
        mean = (values * present).sum(1, keepdim=True) / number
        deviation = ((values - mean).square() * present).sum(1, keepdim=True).div(number).sqrt()
    # A map without contrast lies at its mean but for rounding, and all of it counts.
    above = values >= mean - deviations * deviation - 1e-9 * values.abs().amax(1, keepdim=True)
    return (above if present is None else above & present).sum(1)


COUNTS: dict[str, Callable[..., Tensor]] = {
    "top_p": top_p_counts,
    "threshold": threshold_counts,
    "level": level_counts,
    "deviation": deviation_counts,
}


@dataclass(frozen=True)
class Budget:
    """How many tokens are kept.

    Attributes:
        kind: "fixed" or one of `COUNTS`.
        value: the share of the tokens ("fixed"), or what the rule of `COUNTS` takes.
        min_keep, max_keep: bounds for all but "fixed", as shares of the grid's tokens.

    Raises ConfigError: the bounds are no shares, or the lower one is above the other.
    """

    kind: str
    value: float
    min_keep: float = 0.05
    max_keep: float = 1.0

    def __post_init__(self) -> None:
        check_ratio("min_keep", self.min_keep)
        check_ratio("max_keep", self.max_keep)
        if self.min_keep > self.max_keep:
            raise ConfigError(
                f"pruner.min_keep={self.min_keep} must be at most pruner.max_keep={self.max_keep}"
            )

    @property
    def variable(self) -> bool:
        """Whether the clip decides how many tokens it keeps."""
        return self.kind != "fixed"

    def counts(self, significance: Tensor, present: Tensor | None = None) -> Tensor:
        """significance (B, T', H', W') -> tokens to keep (B,) int64, at least 1.

        `present` (B, T', H', W') bool: the rules "level" and "deviation" look at these tokens only; None: at all. The
        bounds are shares of the grid all the same.
        """
        flat = significance.flatten(1)
        batch, num_tokens = flat.shape
        if not self.variable:
            return torch.full((batch,), keep_count(self.value, num_tokens), device=flat.device)
        there = () if present is None else (present.flatten(1),)
        return self.bounded(COUNTS[self.kind](flat, self.value, *there), num_tokens)

    def bounded(self, counts: Tensor, num_tokens: int) -> Tensor:
        """counts (B,) -> the same between `min_keep` and `max_keep` of the grid's tokens."""
        return counts.clamp(keep_count(self.min_keep, num_tokens), keep_count(self.max_keep, num_tokens))


def map_budget(
    kind: str = "fixed",
    *,
    keep_ratio: float = 0.3,
    top_p: float = 0.5,
    threshold: float = 0.5,
    min_keep: float = 0.05,
    max_keep: float = 1.0,
) -> Budget:
    """The budget that the keys of a map-based pruner describe.

    Args:
        kind: "fixed" keeps `keep_ratio` of the tokens of every clip; see `top_p_counts` and `threshold_counts`.
        keep_ratio, top_p, threshold: what the three kinds read.

    Raises ConfigError: an unknown kind, or a value out of range.
    """
    values = {
        "fixed": check_ratio("keep_ratio", keep_ratio),
        "top_p": check_ratio("top_p", top_p),
        "threshold": check_number("threshold", threshold, 0, 1),
    }
    return Budget(kind, values[check_known("pruner.budget", kind, values)], min_keep, max_keep)


def _finite(flat: Tensor) -> Tensor:
    """(B, N) in float64; NaN and -inf become the clip's smallest finite value, +inf its largest."""
    flat = flat.double()
    good = flat.isfinite()
    low = torch.where(good, flat, math.inf).amin(1, keepdim=True)
    high = torch.where(good, flat, -math.inf).amax(1, keepdim=True)
    filled = torch.where(good, flat, torch.where(flat == math.inf, high, low))
    return torch.where(good.any(1, keepdim=True), filled, 0.0)
