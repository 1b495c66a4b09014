"""What another precision changes: runs in bf16 or fp16 beside the same runs in fp32, video by video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .runs import Run, twin_key

EXACT = "fp32"


@dataclass(frozen=True)
class Agreement:
    """One run against the same run in fp32.

    Attributes:
        num_videos: that both answered.
        num_same: that get the same class from both.
    """

    method: str
    kept: float
    dtype: str
    num_videos: int
    num_same: int

    @property
    def percent(self) -> float:
        return 100 * self.num_same / self.num_videos


def agreements(runs: Sequence[Run]) -> list[Agreement]:
    """Every run in another precision that has a twin in fp32: alike in all else, with answers to the same videos."""
    exact = {twin_key(run): run for run in runs if run.dtype == EXACT}
    found = []
    for run in runs:
        twin = exact.get(twin_key(run))
        if run.dtype == EXACT or twin is None:
            continue
        both = [
            (answer.pred, twin.answers[video].pred)
            for video, answer in run.answers.items()
            if answer.pred is not None and video in twin.answers and twin.answers[video].pred is not None
        ]
        if both:
            same = sum(one == other for one, other in both)
            found.append(Agreement(run.plain_method, run.kept, run.dtype, len(both), same))
    return sorted(found, key=lambda one: (one.method, one.kept, one.dtype))
