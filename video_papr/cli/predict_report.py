"""What `tools/predict.py` prints."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from ..core.tables import Table
from ..evaluation.reports.tables import print_failures
from ..inference.segments import Window, merge_windows

if TYPE_CHECKING:
    from ..core.console import Terminal
    from ..inference.files import Outcome


def print_predictions(outcomes: Sequence[Outcome], console: Terminal) -> None:
    """The best classes of every video; when each is the best, for videos in windows; and the videos that failed."""
    rows = [
        [outcome.path if rank == 0 else "", guess.name, f"{100 * guess.probability:.1f}"]
        for outcome in outcomes
        for rank, guess in enumerate(outcome.guesses)
    ]
    if rows:
        Table(["video", "class", "probability, %"], rows, left=(0, 1)).print(console)
    for outcome in outcomes:
        if len(outcome.windows) > 1:
            _timeline(outcome).print(console)
    print_failures([(outcome.path, outcome.error) for outcome in outcomes if outcome.error], console)
    cost = _cost([window for outcome in outcomes for window in outcome.windows], outcomes[0].num_tokens)
    if cost:
        console.print(cost)


def _timeline(outcome: Outcome) -> Table:
    """Neighbouring windows with the same best class are one line."""
    rows = [
        [
            f"{segment.start_seconds:.1f}",
            f"{segment.end_seconds:.1f}",
            str(segment.windows),
            segment.name,
            f"{100 * segment.probability:.1f}",
        ]
        for segment in merge_windows(outcome.windows)
    ]
    columns = ["from, s", "to, s", "windows", "class", "mean probability, %"]
    return Table(columns, rows, title=f"{outcome.path}: best class over time", left=(3,))


def _cost(windows: Sequence[Window], num_tokens: int) -> str:
    if not windows:
        return ""
    kept = fmean(num_tokens if window.kept_tokens is None else window.kept_tokens for window in windows)
    latency = median(window.latency_ms for window in windows)
    said = f"{kept:.0f} of {num_tokens} tokens read per view; {latency:.0f} ms per answer (median, decoding left out)"
    unknown = [window.unknown for window in windows if window.unknown is not None]
    if unknown:
        said += f"; {fmean(unknown):.1f} frames of a view have no motion vectors"
    return said
