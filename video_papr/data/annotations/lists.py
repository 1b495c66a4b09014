"""Text files with a path and a label in each line, as users of VideoMAE and SlowFast have them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .records import (
    Complain,
    Listing,
    VideoList,
    checked_root,
    label_parser,
    numbered_lines,
    read_text,
    refuse,
)

_LABEL_HEADERS = frozenset(["label", "labels", "class", "class_name", "class_id", "target"])


def read_csv(
    annotations: Path | str,
    root: Path | str,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    complain: Complain = refuse,
) -> VideoList:
    """Reads lines of a path and a label, separated by a comma or by white space, after an optional header.

    Which of the two separates is decided by the first line, for the whole file. Paths are relative to `root`
    or absolute and may hold blanks; with commas, fields may be quoted. Labels are integers from 0, or names
    if `class_names` is given.

    Args:
        annotations: the list; UTF-8.
        root: where relative paths start.
        num_classes: labels at or above it are errors; the number of `class_names` when these are given.
        class_names: names in the order of the labels.
        complain: called for each wrong line.

    Raises:
        DataError: a file or directory is absent, the list is empty, or none of the listed videos exists.
        whatever `complain` raises: a line is malformed, a label is out of range, a path appears twice. The text
            names file and line. Such lines are left out when it returns.
    """
    root = checked_root(root)
    names = None if class_names is None else tuple(class_names)
    parse_label = label_parser(len(names) if names is not None else num_classes, names)
    listing = Listing(str(annotations), complain)
    for number, path, label_text in _split_lines(Path(annotations), parse_label, complain):
        try:
            label = parse_label(label_text)
        except ValueError as error:
            complain(f"{annotations}:{number}: {error}")
            continue
        listing.add(f"{annotations}:{number}", path, root / path, label)
    return listing.finish(root, names, expected="lines of a path and a label")


def _split_lines(
    annotations: Path, parse_label: Callable[[str], int], complain: Complain
) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, path, label as text) for every line that is not blank, without the header."""
    lines = numbered_lines(read_text(annotations))
    if not lines:
        return
    comma = "," in lines[0][1] and _separates(lines[0][1], parse_label)
    for position, (number, line) in enumerate(lines):
        path, label = _split(line, comma)
        if position == 0 and label.lower() in _LABEL_HEADERS:
            continue
        if not path or not label:
            expected = "path,label" if comma else "path label"
            complain(f"{annotations}:{number}: expected '{expected}', got {line!r}")
            continue
        yield number, path, label


def _separates(line: str, parse_label: Callable[[str], int]) -> bool:
    """Whether the comma of a first line separates: a label or a header follows it. ("a, b.mp4 3": it does not.)"""
    label = _split(line, comma=True)[1]
    try:
        parse_label(label)
    except ValueError:
        # An unknown or malformed label is still one when white space does not bring forth a better reading.
        words = line.split()
        return label.lower() in _LABEL_HEADERS or len(words) < 2 or not words[-1].isdigit()
    return True


def _split(line: str, comma: bool) -> tuple[str, str]:
    if comma and '"' in line:
        *path, label = next(csv.reader([line], skipinitialspace=True))
        return ",".join(path).strip(), label.strip()
    if comma:
        path_text, _, label = line.rpartition(",")  # an unquoted path may hold commas too
        return path_text.strip(), label.strip()
    fields = line.rsplit(maxsplit=1)
    return (fields[0], fields[1]) if len(fields) == 2 else (line, "")
