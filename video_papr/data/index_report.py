"""The report on an index of a dataset, as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from ..core.escape import markdown
from ..core.tables import Table
from .index import STATUSES, IndexEntry

# A report is read by people; the index holds every row.
_ROWS_SHOWN = 50


def count_statuses(entries: Iterable[IndexEntry]) -> dict[str, int]:
    """Videos by status, the gravest status first, zeros included."""
    counts = Counter(entry.status for entry in entries)
    return {status: counts[status] for status in STATUSES}


def report_text(title: str, entries: Sequence[IndexEntry], problems: Sequence[str]) -> str:
    """Puts the report together. `problems`: wrong entries of the annotation file, one line each."""
    counts = [[name, str(count), STATUSES[name]] for name, count in count_statuses(entries).items()]
    table = Table(["status", "videos", "meaning"], counts, left=(0, 2))
    lines = [f"# {markdown(title)}", "", f"{len(entries)} videos", "", table.markdown()]
    lines += ["", "## What the readable files hold", "", *_contents(entries)]
    if problems:
        lines += ["", "## Wrong entries of the list, left out", ""]
        lines += _some([f"- {markdown(line)}" for line in problems])
    for status in STATUSES:
        rows = [entry for entry in entries if entry.status == status]
        if status != "ok" and rows:
            lines += ["", f"## {status}: {STATUSES[status]}", ""]
            lines += _some([f"- {markdown(row.path)}: {markdown(row.reason)}" for row in rows])
    return "\n".join(lines) + "\n"


def _contents(entries: Sequence[IndexEntry]) -> list[str]:
    readable = [entry for entry in entries if entry.frames is not None]
    if not readable:
        return ["Nothing: no file can be read."]
    frames = [entry.frames or 0 for entry in readable]
    seconds = sum(entry.duration_seconds or 0 for entry in readable)
    gigabytes = sum(entry.bytes or 0 for entry in readable) / 1e9
    return [
        f"- {seconds / 3600:.2f} hours, {gigabytes:.3f} GB",
        f"- frames per video: {min(frames)} to {max(frames)}, median {median(frames):g}",
        f"- frames per second: {_commonest(f'{entry.fps:g}' for entry in readable)}",
        f"- width x height: {_commonest(f'{entry.width}x{entry.height}' for entry in readable)}",
        f"- codec: {_commonest(str(entry.codec) for entry in readable)}",
    ]


def _commonest(values: Iterable[str]) -> str:
    """The five most common values with their counts; ties in alphabetical order."""
    ranked = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{value} ({count})" for value, count in ranked[:5])
    return shown + (f" and {len(ranked) - 5} others" if len(ranked) > 5 else "")


def _some(rows: list[str]) -> list[str]:
    rest = len(rows) - _ROWS_SHOWN
    return rows if rest <= 0 else [*rows[:_ROWS_SHOWN], f"- and {rest} more"]
