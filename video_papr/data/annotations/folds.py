"""Which videos belong together, for measuring on scenes that were not learned from: a table of files and folds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...core.errors import DataError
from .lists import PATH_HEADERS, split_fields
from .records import VideoRecord, numbered_lines, read_text, short

GROUP_HEADERS = ("group", "scene")


def read_folds(
    table: Path | str, records: Sequence[VideoRecord], root: Path | str, *, key: str
) -> tuple[list[str] | None, list[str] | None]:
    """The fold of each record, and the group (scene) that may not be torn apart; None where there is no such column.

    The table has a header, with a column for the file ("file", "path", ...) and "fold", "group" or "scene"; commas,
    semicolons or tabs part them. Files are named relative to `root`, or absolute; those of no record are passed over.

    Raises DataError: the table is missing or has other columns, a record is not in it, or a group lies in two folds.
    """
    lines = numbered_lines(read_text(Path(table), key=key, what="a table of files and folds"))
    header = lines[0][1] if lines else ""
    delimiter = max("\t;,", key=header.count)
    titles = [title.lower() for title in split_fields(header, delimiter)]
    path = next((place for place, title in enumerate(titles) if title in PATH_HEADERS), None)
    fold = titles.index("fold") if "fold" in titles else None
    group = next((place for place, title in enumerate(titles) if title in GROUP_HEADERS), None)
    if path is None or (fold is None and group is None):
        raise DataError(
            f"{key}={table}: its first line must name a column for the file and one of fold, group, scene; "
            f"found {short(header)!r}"
        )
    found: dict[str, list[str]] = {}
    for number, line in lines[1:]:
        row = split_fields(line, delimiter)
        if len(row) != len(titles):
            raise DataError(f"{table}:{number}: {len(row)} fields under {len(titles)} titles")
        found[os.path.normpath(Path(root, row[path]))] = row
    absent = next((record for record in records if os.path.normpath(record.path) not in found), None)
    if absent is not None:
        raise DataError(f"{key}={table}: has no line for {absent.name}")
    own = [found[os.path.normpath(record.path)] for record in records]
    folds = None if fold is None else [row[fold] for row in own]
    groups = None if group is None else [row[group] for row in own]
    if folds is not None and groups is not None:
        pairs = dict(zip(groups, folds, strict=True))
        torn = next((g for g, f in zip(groups, folds, strict=True) if pairs[g] != f), None)
        if torn is not None:
            raise DataError(f"{key}={table}: group {short(torn)!r} lies in two folds")
    return folds, groups
