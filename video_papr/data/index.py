"""The index of a dataset: what each video file holds, and what is wrong with it. Pure, but for reading and writing CSV.

`tools/prepare_data.py` writes it. With `dataset.index=FILE` an evaluation says beforehand which videos are damaged and
counts them as failed without trying them again; it decodes all others as ever, the index is not trusted for pixels.

The rows are sorted by path and hold no time, place or machine, so the same files give the same bytes.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.tables import csv_text
from .annotations import VideoList, VideoRecord
from .annotations.records import short

STATUSES = {
    "missing": "listed, but not on disk",
    "corrupt": "cannot be decoded; an evaluation counts it as failed",
    "label": "the same content stands under two labels",
    "duplicate": "the same content as another video with the same label",
    "short": "a clip must repeat frames",
    "ok": "nothing found",
}
"""What the statuses mean, the gravest first. A video has the gravest that applies; `reason` names all of them."""


@dataclass(frozen=True)
class Probe:
    """What a file holds. Everything but `bytes` and `sha256` is None when `error` says why it cannot be decoded.

    Attributes:
        duration_seconds: from the first frame shown to the end of the last, 0.0 when the file does not say.
        width, height: in pixels, upright.
    """

    bytes: int  # size of the file
    sha256: str  # of its content; "" when it cannot be read
    frames: int | None = None  # frames of the video
    fps: float | None = None  # average frames per second, 0.0 when the file does not say
    duration_seconds: float | None = None
    width: int | None = None
    height: int | None = None
    codec: str | None = None  # FFmpeg's name
    error: str | None = None  # one line, without the path


@dataclass(frozen=True)
class IndexEntry:
    """A row of the index. What is not known is None; see `Probe` for the units and `STATUSES` for the status."""

    path: str
    label: int | None
    frames: int | None
    fps: float | None
    duration_seconds: float | None
    width: int | None
    height: int | None
    codec: str | None
    bytes: int | None
    sha256: str | None
    status: str
    reason: str


COLUMNS = tuple(column.name for column in fields(IndexEntry))
# What a field is that may be empty; path and status never are, and no reason is an empty one.
_KINDS: dict[str, type] = {
    **dict.fromkeys(("label", "frames", "width", "height", "bytes"), int),
    **dict.fromkeys(("fps", "duration_seconds"), float),
    **dict.fromkeys(("codec", "sha256"), str),
}


def build_index(videos: VideoList, probes: Mapping[str, Probe], *, min_frames: int = 1) -> list[IndexEntry]:
    """Judges every video of a list.

    Args:
        probes: name of a record -> what its file holds.
        min_frames: a video with fewer frames is "short".

    Returns:
        one entry for each record and each missing video, sorted by path.
    """
    twins = _twins(videos.records, probes)
    entries = [
        _judge(record, probes[record.name], twins.get(record.name), videos.class_names, min_frames)
        for record in videos.records
    ]
    nothing = (None,) * 9
    entries += [IndexEntry(name, *nothing, "missing", STATUSES["missing"]) for name in videos.missing]
    return sorted(entries, key=lambda entry: entry.path)


def _twins(records: Sequence[VideoRecord], probes: Mapping[str, Probe]) -> dict[str, VideoRecord]:
    """Name of a video -> another one of the same content: of another label if there is one, else the first by name."""
    groups: dict[str, list[VideoRecord]] = {}
    for record in sorted(records, key=lambda record: record.name):
        if probes[record.name].bytes and probes[record.name].sha256:
            groups.setdefault(probes[record.name].sha256, []).append(record)
    twins = {}
    for group in groups.values():
        for record in group:
            others = [other for other in group if other.label != record.label]
            if others or record is not group[0]:
                twins[record.name] = (others or group)[0]
    return twins


def _judge(
    record: VideoRecord, probe: Probe, twin: VideoRecord | None, names: Sequence[str] | None, min_frames: int
) -> IndexEntry:
    found: dict[str, str] = {}
    if probe.error is not None:
        found["corrupt"] = probe.error
    if twin is not None and twin.label != record.label:
        name = twin.label if names is None else names[twin.label]
        found["label"] = f"same content as {twin.name}, which has the label {name}"
    elif twin is not None:
        found["duplicate"] = f"same content as {twin.name}"
    if probe.frames is not None and probe.frames < min_frames:
        found["short"] = f"{probe.frames} frames, a clip needs {min_frames}"
    status = next((status for status in STATUSES if status in found), "ok")
    reason = "; ".join(found[status] for status in STATUSES if status in found)
    known = {name: value for name, value in asdict(probe).items() if name != "error"}
    known["sha256"] = probe.sha256 or None
    return IndexEntry(record.name, record.label, **known, status=status, reason=reason)


def index_text(entries: Iterable[IndexEntry]) -> str:
    """The index as CSV, with a header."""
    return csv_text([COLUMNS, *map(astuple, entries)])


def read_index(path: Path | str) -> dict[str, IndexEntry]:
    """Reads what `index_text` wrote: path of a video -> its entry.

    Raises DataError: the file is absent or no index. The text names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(
            f"dataset.index={path} {'is not a file' if path.exists() else 'does not exist'}; "
            "tools/prepare_data.py writes one"
        )
    # Names of files need not be UTF-8; what is not comes back as it was.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if tuple(header) != COLUMNS:
            raise DataError(f"{path}:1: no index: expected the columns {','.join(COLUMNS)}")
        entries = {}
        for row in rows:
            try:
                entry = _entry(row)
            except ValueError as error:
                raise DataError(f"{path}:{rows.line_num}: {error}") from None
            entries[entry.path] = entry
    return entries


def _entry(row: list[str]) -> IndexEntry:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} fields, expected {len(COLUMNS)}")
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    if values["status"] not in STATUSES:
        raise ValueError(
            f"status {short(values['status'])!r} is unknown; expected one of {', '.join(STATUSES)}"
        )
    for name, kind in _KINDS.items():
        try:
            values[name] = kind(values[name]) if values[name] else None
        except ValueError:
            raise ValueError(f"{name} {short(values[name])!r} is no number") from None
    return IndexEntry(**values)


@dataclass(frozen=True)
class IndexUse:
    """How an index fits a list: videos that it knows to be damaged, that it lacks, and that changed since."""

    unreadable: int
    unlisted: int
    changed: int


def apply_index(
    videos: VideoList, index: Mapping[str, IndexEntry], *, source: Path | str
) -> tuple[VideoList, IndexUse]:
    """Marks the videos that the index knows to be damaged, so that nobody tries to decode them again.

    A damaged file whose size is another one now was replaced: it is decoded as any other.

    Raises DataError: the index has none of the videos, so it was made for another root or list.
    """
    unreadable, unlisted, changed = {}, 0, 0
    for record in videos.records:
        entry = index.get(record.name)
        if entry is None:
            unlisted += 1
        elif entry.status == "corrupt":
            try:
                same = os.path.getsize(record.path) == entry.bytes
            except OSError:
                same = False
            if same:
                unreadable[record.name] = f"cannot decode {record.name} ({entry.reason}; says dataset.index)"
            else:
                changed += 1
    if unlisted == len(videos.records):
        raise DataError(
            f"dataset.index={source} has none of the {unlisted} videos (first: {videos.records[0].name}); "
            "it was made for another dataset.root or dataset.annotations"
        )
    return replace(videos, unreadable=unreadable), IndexUse(len(unreadable), unlisted, changed)
