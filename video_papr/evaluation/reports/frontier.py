"""Accuracy against compute over many runs: one point per method and keep ratio, with paired error bars.

Runs that differ in their seeds alone are one point. Every interval is a 95 % percentile bootstrap over videos: the
outcome of a video is its mean over those runs, so seeds do not pretend to be more videos.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from .runs import Answer, Run, Video

RESAMPLES = 2000
CONTROL = "random"  # what every method should beat


@dataclass(frozen=True)
class Interval:
    """A mean in points with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """One method at one keep ratio.

    Attributes:
        num_runs, num_videos: how many runs, and how many different videos they answered.
        top1: per cent of all videos.
        loss: points of top-1 lost against the dense model on the same videos; None without a dense baseline.
        gain: points of top-1 won over `CONTROL` at the same keep ratio on the same videos; None without such runs.
        agreement: per cent of the videos that get the dense model's class.
        kept_tokens, gmacs, latency_ms: means over runs, per view (latency without decoding).
        class_loss, class_top1: label -> points lost, per cent right.
        on_frontier: no other point is at least as good for fewer GMACs.
    """

    method: str
    kept: float
    num_runs: int
    num_videos: int
    top1: Interval
    loss: Interval | None
    gain: Interval | None
    agreement: float | None
    kept_tokens: float | None
    gmacs: float
    latency_ms: float | None
    class_loss: Mapping[int, float]
    class_top1: Mapping[int, float]
    on_frontier: bool = False


def points(runs: Sequence[Run]) -> list[Point]:
    """Groups runs into points, ordered by method and keep ratio."""
    groups: dict[tuple[str, float], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.method, run.kept].append(run)
    controls = {ratio: _hits(group) for (method, ratio), group in groups.items() if method == CONTROL}
    made = [
        _point(method, ratio, group, controls.get(ratio) if method != CONTROL else None)
        for (method, ratio), group in sorted(groups.items())
    ]
    return [replace(point, on_frontier=_undominated(point, made)) for point in made]


def bootstrap(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Mean and 95 % percentile interval, in points, of per-video values (shares of 1)."""
    from scipy import stats

    data = 100 * np.asarray(values, float)
    mean = float(data.mean())
    if len(data) < 2:
        return Interval(mean, mean, mean)
    found = stats.bootstrap(
        (data,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def _point(method: str, ratio: float, group: list[Run], control: Mapping[Video, float] | None) -> Point:
    hits = _hits(group)
    paired = [run for run in group if run.has_dense]
    losses = _mean_by_video(
        (video, float(a.dense_correct) - float(a.correct))
        for run in paired
        for video, a in run.answers.items()
    )
    same = [a.pred == a.dense_pred for run in paired for a in run.answers.values() if a.pred is not None]
    shared = [video for video in hits if control is not None and video in control]
    times = [_latency(run) for run in group]
    known = [time for time in times if time is not None]
    kept = [
        run.results["mean_kept_tokens"] for run in group if run.results.get("mean_kept_tokens") is not None
    ]
    return Point(
        method=method,
        kept=ratio,
        num_runs=len(group),
        num_videos=len(hits),
        top1=bootstrap(list(hits.values())),
        loss=bootstrap(list(losses.values())) if losses else None,
        gain=bootstrap([hits[v] - control[v] for v in shared]) if control is not None and shared else None,
        agreement=100 * fmean(same) if same else None,
        kept_tokens=fmean(kept) if kept else None,
        gmacs=fmean(run.results["gmacs_per_view"]["total"] for run in group),
        latency_ms=fmean(known) if known else None,
        class_loss=_by_class(paired, lambda answer: float(answer.dense_correct) - float(answer.correct)),
        class_top1=_by_class(group, lambda answer: float(answer.correct)),
    )


def _hits(group: Sequence[Run]) -> dict[Video, float]:
    return _mean_by_video((video, float(a.correct)) for run in group for video, a in run.answers.items())


def _mean_by_video(pairs: Iterable[tuple[Video, float]]) -> dict[Video, float]:
    values: dict[Video, list[float]] = defaultdict(list)
    for video, value in pairs:
        values[video].append(value)
    return {video: fmean(found) for video, found in values.items()}


def _by_class(group: Sequence[Run], read: Callable[[Answer], float]) -> dict[int, float]:
    """Label -> the mean over its videos, in per cent."""
    values: dict[int, list[float]] = defaultdict(list)
    for run in group:
        for answer in run.answers.values():
            if answer.label is not None:
                values[answer.label].append(read(answer))
    return {label: 100 * fmean(found) for label, found in sorted(values.items())}


def _latency(run: Run) -> float | None:
    parts = [run.results["latency_ms"].get(key) for key in ("preprocess", "score", "backbone")]
    return sum(part for part in parts if part is not None) if parts[-1] is not None else None


def _undominated(point: Point, others: Sequence[Point]) -> bool:
    return not any(
        other is not point
        and other.gmacs <= point.gmacs
        and other.top1.mean >= point.top1.mean
        and (other.gmacs, -other.top1.mean) != (point.gmacs, -point.top1.mean)
        for other in others
    )
