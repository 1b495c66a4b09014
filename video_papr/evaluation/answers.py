"""What an evaluation finds: an answer for each video, and what all of them cost.

Letters: T frames, S x S pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from .cost import StageTimes


@dataclass(frozen=True)
class VideoAnswer:
    """What the models say about one video.

    Attributes:
        label: the true class; None for a listed video that is not on disk.
        top5: class indices, best first; None when there is no answer.
        probs_top5: their probabilities.
        kept_tokens: tokens that the pruner leaves of a view; the mean where views differ.
        baseline_top5: the dense model's answer; None without a baseline.
        actor_share: share of the actor's tokens that was kept; None where no actor is known.
        error: why there is no answer.
        index: place of the video in the dataset; -1 for one that is not on disk.
    """

    name: str
    label: int | None
    top5: tuple[int, ...] | None = None
    probs_top5: tuple[float, ...] | None = None
    kept_tokens: float | None = None
    baseline_top5: tuple[int, ...] | None = None
    actor_share: float | None = None
    error: str | None = None
    index: int = field(default=-1, compare=False)


@dataclass(frozen=True)
class Example:
    """One view for the picture of kept tubelets: frames (T, S, S, 3) uint8 and mask (T', H', W') bool, on the CPU."""

    answer: VideoAnswer
    frames: Tensor
    mask: Tensor


@dataclass
class Evaluation:
    """All answers in the order of the dataset, and what they cost.

    `dense` is None without a baseline. `kept` says how many views kept how many tokens. `warmup` is what the untimed
    run of the first batch took, the dense model's with it.
    """

    answers: list[VideoAnswer] = field(default_factory=list)
    pruned: StageTimes = field(default_factory=StageTimes)
    dense: StageTimes | None = None
    examples: list[Example] = field(default_factory=list)
    kept: Counter[int] = field(default_factory=Counter)
    warmup: StageTimes = field(default_factory=StageTimes)

    def extend(self, other: Evaluation) -> None:
        """Adds another one, of other videos."""
        self.answers += other.answers
        self.pruned.extend(other.pruned)
        if other.dense is not None:
            self.dense = self.dense or StageTimes()
            self.dense.extend(other.dense)
        self.examples += other.examples
        self.kept.update(other.kept)
        self.warmup.extend(other.warmup)
