"""Accuracy over all videos of a split, its error bars, and the paired comparison of two models.

A video without an answer (failed or missing) counts as wrong: leaving it out would make two runs over different
sets of readable files look comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

Ranking = Sequence[int] | None  # class indices, best first; None = no answer


def percent_correct(
    rankings: Sequence[Ranking], labels: Sequence[int], *, k: int = 1, total: int | None = None
) -> float:
    """Returns top-k accuracy in percent of `total` videos (default: all those given)."""
    total = len(rankings) if total is None else total
    if len(rankings) != len(labels) or total < len(rankings):
        raise ValueError(f"{len(rankings)} answers, {len(labels)} labels and a total of {total} do not fit")
    hits = sum(
        label in answer[:k] for answer, label in zip(rankings, labels, strict=True) if answer is not None
    )
    return 100.0 * hits / total if total else 0.0


def standard_error(percent: float, total: int) -> float:
    """Returns the binomial standard error, in points, of an accuracy in percent over `total` videos."""
    share = percent / 100.0
    return 100.0 * sqrt(share * (1.0 - share) / total) if total else 0.0


@dataclass(frozen=True)
class PairedComparison:
    """The same videos answered by the dense and by the pruned model.

    Attributes:
        loss_standard_error: its standard error from the differences video by video. It is smaller than that of two
            separate runs, since most videos are answered alike.
    """

    loss_points: float  # top-1 of the dense model minus top-1 of the pruned one, in points
    loss_standard_error: float
    agreement_percent: float  # videos to which both give the same class, of those that both answered


def compare_paired(
    dense: Sequence[Ranking], pruned: Sequence[Ranking], labels: Sequence[int], *, total: int | None = None
) -> PairedComparison:
    """Compares two models on the same videos. `total` adds videos that neither could answer (differences of 0)."""
    total = len(labels) if total is None else total
    differences = [
        int(d is not None and d[0] == label) - int(p is not None and p[0] == label)
        for d, p, label in zip(dense, pruned, labels, strict=True)
    ]
    if total < len(differences):
        raise ValueError(f"a total of {total} is less than the {len(differences)} videos given")
    mean = sum(differences) / total if total else 0.0
    squares = sum(difference**2 for difference in differences)  # videos beyond those given add zero
    variance = (squares - total * mean**2) / (total - 1) / total if total > 1 else 0.0  # of the mean
    both = [(d[0], p[0]) for d, p in zip(dense, pruned, strict=True) if d is not None and p is not None]
    agreement = sum(d == p for d, p in both) / len(both) if both else 0.0
    return PairedComparison(100.0 * mean, 100.0 * sqrt(max(variance, 0.0)), 100.0 * agreement)
