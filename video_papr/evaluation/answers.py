"""What an evaluation finds: an answer for each video, and what all of them cost.

Letters: T frames, S x S pixels, T' x H' x W' the token grid.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor

from .cost import StageTimes
from .metrics import percent_correct

NOT_FINITE = "the logits are not finite (NaN or infinite)"


@dataclass(frozen=True)
class VideoAnswer:
    """What the models say about one video.

    Attributes:
        extra: extra metrics by name, see `observers.ExtraMetric`; None where one cannot be computed.
        index: place of the video in the dataset; -1 for one that is not on disk.
    """

    name: str
    label: int | None  # the true class; None for a listed video that is not on disk
    top5: tuple[int, ...] | None = None  # class indices, best first; None when there is no answer
    probs_top5: tuple[float, ...] | None = None  # their probabilities
    kept_tokens: float | None = None  # tokens that the pruner leaves of a view; the mean where views differ
    baseline_top5: tuple[int, ...] | None = None  # the dense model's answer; None without a baseline
    extra: dict[str, float | None] = field(default_factory=dict)
    error: str | None = None  # why there is no answer
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

    @property
    def top1(self) -> float:
        """Top-1 accuracy in percent of all videos; those without an answer count as wrong."""
        return self.accuracy(1)

    @property
    def top5(self) -> float:
        """Top-5 accuracy in percent of all videos."""
        return self.accuracy(5)

    def accuracy(self, k: int, *, baseline: bool = False) -> float:
        """Top-k accuracy (k up to 5) in percent of all videos, of the pruned or of the dense model."""
        known = [answer for answer in self.answers if answer.label is not None]
        rankings = [answer.baseline_top5 if baseline else answer.top5 for answer in known]
        labels = [answer.label for answer in known if answer.label is not None]
        return percent_correct(rankings, labels, k=k, total=len(self.answers))

    @property
    def failed(self) -> list[VideoAnswer]:
        """The videos without an answer; `error` says why."""
        return [answer for answer in self.answers if answer.error is not None]
