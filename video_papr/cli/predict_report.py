"""What `tools/predict.py` prints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from statistics import fmean, median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..core.errors import printable

if TYPE_CHECKING:
    from ..inference.files import Outcome, Window


def print_predictions(outcomes: Sequence[Outcome], console: Console) -> None:
    """The best classes of every video; when each of them is the best, for videos that were cut into windows."""
    table = Table("video", "class")
    table.add_column("probability, %", justify="right")
    for outcome in outcomes:
        name = escape(printable(outcome.path))
        if outcome.error is not None:
            table.add_row(name, f"[red]{escape(printable(outcome.error))}[/]", "", end_section=True)
        for rank, guess in enumerate(outcome.guesses):
            last = rank == len(outcome.guesses) - 1
            probability = f"{100 * guess.probability:.1f}"
            table.add_row("" if rank else name, escape(guess.name), probability, end_section=last)
    console.print(table)
    for outcome in outcomes:
        if len(outcome.windows) > 1:
            console.print(f"{printable(outcome.path)}: best class over time", markup=False, soft_wrap=True)
            console.print(_timeline(outcome))
    cost = _cost([window for outcome in outcomes for window in outcome.windows], outcomes[0].num_tokens)
    if cost:
        console.print(cost, highlight=False)


def _timeline(outcome: Outcome) -> Table:
    """Neighbouring windows with the same best class are one line."""
    table = Table()
    for name in ("from, s", "to, s", "windows"):
        table.add_column(name, justify="right")
    table.add_column("class")
    table.add_column("mean probability, %", justify="right")
    for name, group in groupby(outcome.windows, key=lambda window: window.guesses[0].name):
        run = list(group)
        start, end = f"{run[0].start_seconds:.1f}", f"{run[-1].end_seconds:.1f}"
        mean = 100 * fmean(window.guesses[0].probability for window in run)
        table.add_row(start, end, str(len(run)), escape(name), f"{mean:.1f}")
    return table


def _cost(windows: Sequence[Window], num_tokens: int) -> str:
    if not windows:
        return ""
    kept = fmean(num_tokens if window.kept_tokens is None else window.kept_tokens for window in windows)
    latency = median(window.latency_ms for window in windows)
    return f"{kept:.0f} of {num_tokens} tokens read per view; {latency:.0f} ms per answer (median, decoding left out)"
