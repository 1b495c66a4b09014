"""Windows of a video, and segments: neighbouring windows with the same best class, as a table and as subtitles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby, pairwise
from statistics import fmean

from torch import Tensor

from ..core.pixels import frames_without_vectors
from .overlay import Scene, Seen
from .predict import Answer, Guess


@dataclass(frozen=True)
class Window:
    """An `Answer` without its pixels. `kept_tokens` of a view, the mean where views differ; None for all of them.

    `unknown`: frames of a view without motion vectors, where a pruner reads them.
    """

    start_seconds: float
    end_seconds: float
    guesses: tuple[Guess, ...]
    probabilities: Tensor
    latency_ms: float
    kept_tokens: float | None
    seen: Seen | None
    unknown: float | None

    @classmethod
    def of(cls, answer: Answer, crops: int) -> Window:
        kept = None if answer.mask is None else float(answer.mask.flatten(1).sum(1).float().mean())
        span = answer.start_seconds, answer.end_seconds
        seen = Seen.of(answer.mask, answer.seconds, crops)
        unknown = frames_without_vectors(answer.views)
        return cls(*span, answer.guesses, answer.probabilities, answer.latency_ms, kept, seen, unknown)

    @property
    def scene(self) -> Scene:
        """The window in a film."""
        best = self.guesses[0]
        return Scene(self.start_seconds, self.end_seconds, best.name, best.probability, self.seen)


@dataclass(frozen=True)
class Segment:
    """From when to when a class is the best one, in how many windows, with their mean probability."""

    start_seconds: float
    end_seconds: float
    windows: int
    name: str
    probability: float


def merge_windows(windows: Sequence[Window]) -> list[Segment]:
    """The segments of a video; where windows overlap, the later one ends the segment before it."""
    runs = [list(group) for _, group in groupby(windows, key=lambda window: window.guesses[0].name)]
    ends = [min(run[-1].end_seconds, after[0].start_seconds) for run, after in pairwise(runs)]
    return [
        Segment(
            run[0].start_seconds,
            end,
            len(run),
            run[0].guesses[0].name,
            fmean(window.guesses[0].probability for window in run),
        )
        for run, end in zip(runs, [*ends, *(run[-1].end_seconds for run in runs[-1:])], strict=True)
    ]


def subtitles(segments: Sequence[Segment], kind: str = "srt") -> str:
    """The segments as SubRip ("srt"), which players show beside the video, or WebVTT ("vtt"), which browsers do."""
    blocks = ["WEBVTT\n"] if kind == "vtt" else []
    for number, segment in enumerate(segments, start=1):
        span = f"{_time(segment.start_seconds, kind)} --> {_time(segment.end_seconds, kind)}"
        name = escape(segment.name, quote=False) if kind == "vtt" else segment.name
        blocks.append(f"{number}\n{span}\n{name} {100 * segment.probability:.0f} %\n")
    return "\n".join(blocks)


def _time(seconds: float, kind: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    point = "." if kind == "vtt" else ","
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
