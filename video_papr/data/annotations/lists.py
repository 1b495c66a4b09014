"""Text files with a path and a label in each line, as users of VideoMAE, SlowFast and pandas have them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...core.errors import DataError
from .classes import label_parser
from .files import is_video, words
from .records import Listing, OnInvalid, VideoList, checked_root, numbered_lines, read_text, refuse, short

_LABEL_HEADERS = words("label labels class class_name class_id class_idx category target y")
PATH_HEADERS = words(
    "path paths video videos video_path video_name filename file_name filepath file_path file name clip "
    "clip_path id"
)


def read_csv(
    annotations: Path | str,
    root: Path | str,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    on_invalid: OnInvalid = refuse,
) -> VideoList:
    """Reads lines of a path and a label, separated by a comma, semicolon, tab or white space, after an optional header.

    Which of them separates is decided by the first line, for the whole file; so is whether the label comes first and
    whether rows are numbered. Paths are relative to `root` or absolute and may hold blanks; fields may be quoted.
    Labels are integers from 0, or names if `class_names` is given.

    Args:
        root: where relative paths start.
        num_classes: labels at or above it are errors; the number of `class_names` when these are given.

    Raises:
        DataError: a file or directory is absent, the list is empty, or none of the listed videos exists.
        whatever `on_invalid` raises: a line is malformed, a label is out of range, a path appears twice. The text
            names file and line. Such lines are left out when it returns.
    """
    root = checked_root(root)
    names = None if class_names is None else tuple(class_names)
    parse_label = label_parser(len(names) if names is not None else num_classes, names)
    listing = Listing(str(annotations), on_invalid)
    for number, path, label_text in _split_lines(Path(annotations), parse_label, on_invalid):
        try:
            label = parse_label(label_text)
        except ValueError as error:
            on_invalid(f"{annotations}:{number}: {error}")
            continue
        _refuse_counts(f"{annotations}:{number}", root, path, label_text)
        listing.add(f"{annotations}:{number}", path, root / path, label)
    return listing.finish(root, names, expected="lines of a path and a label")


_WITH_COUNTS = re.compile(r"(?P<path>.*?\S)(?P<counts>([\s,;]+\d+)+)")


def _refuse_counts(place: str, root: Path, path: str, label: str) -> None:
    """Raises DataError where a number stands between a video, or a folder of its frames, and the label."""
    found = _WITH_COUNTS.fullmatch(path)
    if found is None or (root / path).is_file():
        return
    line = short(f"{path} {label}")
    if is_video(Path(found["path"]).name):
        raise DataError(
            f"{place}: {line!r} has a number between path and label: frames (as mmaction2 writes), or a second label? "
            "The first line may name the columns, for example: path frames label"
        )
    if (root / found["path"]).is_dir():
        raise DataError(f"{place}: {line!r} is a folder of frames; this list must name video files")


@dataclass(frozen=True)
class _Layout:
    """How the lines of a list are read.

    Attributes:
        columns: places of path and label, where a header says so; else the last field is the label, and all before it
            the path, which may then contain delimiters.
    """

    delimiter: str | None  # ",", ";" or a tab; None: white space
    columns: tuple[int, int] | None = None
    label_first: bool = False  # the first field is the label
    numbered: bool = False  # the first field counts the rows
    skip: int = 0  # lines of the header

    def split(self, line: str) -> tuple[str, str]:
        """(path, label) of a line; one of them is empty where fields are missing. Raises ValueError."""
        if self.columns is not None:
            fields = split_fields(line, self.delimiter)
            return ("", "") if len(fields) <= max(self.columns) else tuple(fields[k] for k in self.columns)  # type: ignore[return-value]
        if self.numbered:
            line = line.split(self.delimiter, 1)[-1]
        if self.delimiter and '"' in line:
            fields = split_fields(line, self.delimiter)
            label = fields.pop(0 if self.label_first else -1)
            return self.delimiter.join(fields), label
        if self.label_first:
            label, _, path = line.strip().partition(self.delimiter or " ")
        else:
            path, label = [*line.strip().rsplit(self.delimiter, 1), ""][:2]
        return path.strip(), label.strip()


def split_fields(line: str, delimiter: str | None) -> list[str]:
    if delimiter is None:
        return line.split()
    try:
        return [
            field.strip() for field in next(csv.reader([line], delimiter=delimiter, skipinitialspace=True))
        ]
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _split_lines(
    annotations: Path, parse_label: Callable[[str], int], on_invalid: OnInvalid
) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, path, label as text) for every line that is not blank, without the header."""
    lines = numbered_lines(read_text(annotations))
    if not lines:
        return
    _refuse_json(annotations, lines[0][1])
    layout = _layout([line for _, line in lines[:3]], parse_label)
    example = (layout.delimiter or " ").join(["label", "path"] if layout.label_first else ["path", "label"])
    for number, line in lines[layout.skip :]:
        try:
            path, label = layout.split(line)
        except ValueError as error:
            on_invalid(f"{annotations}:{number}: {error}")
            continue
        if not path or not label:
            on_invalid(f"{annotations}:{number}: expected {example!r}, got {short(line)!r}")
            continue
        yield number, path, label


def _refuse_json(annotations: Path, line: str) -> None:
    """Raises DataError where a list, or its first line, is JSON; a name in brackets is none."""
    if line[:2] in ("{", "[", "[{", "[[", '{"', '["') or line.startswith("{'"):
        raise DataError(
            f"{annotations}: is JSON ({short(line, 40)}); expected lines of a path and a label, such as clip.mp4,3"
        )


def _layout(lines: list[str], parse_label: Callable[[str], int]) -> _Layout:
    """Judges by the first lines. A delimiter separates when a label or a header follows it (not so in "a, b.mp4 3")."""

    def is_label(text: str) -> bool:
        try:
            parse_label(text)
        except ValueError:
            return False
        return True

    def separates(delimiter: str) -> bool:
        if delimiter not in lines[0]:
            return False
        ends = [
            field.strip(' "') for field in (lines[0].split(delimiter, 1)[0], lines[0].rsplit(delimiter, 1)[1])
        ]
        if any(is_label(end) or end.lower() in _LABEL_HEADERS for end in ends):
            return True
        # An unknown or malformed label is still one when white space does not bring forth a better reading.
        words = lines[0].split()
        return len(words) < 2 or not words[-1].isdecimal()

    layout = _Layout(next((delimiter for delimiter in ";\t," if separates(delimiter)), None))
    try:
        rows = [split_fields(line, layout.delimiter) for line in lines]
    except ValueError:  # the line is named when it is read
        return layout
    titles = [field.lower() for field in rows[0]]
    label = next((k for k, title in enumerate(titles) if title in _LABEL_HEADERS), None)
    path = next((k for k, title in enumerate(titles) if title in PATH_HEADERS and k != label), None)
    if label is not None and not is_label(rows[0][label]):
        if path is None:
            path = next((k for k in range(len(titles)) if k != label and titles[k]), None)
        plain = len(titles) <= 2 and label == len(titles) - 1
        return replace(layout, columns=None if plain or path is None else (path, label), skip=1)
    first = [row[0] for row in rows if row]
    if len(rows) > 1 and all(len(row) > 2 and is_label(row[-1]) for row in rows):
        counted = [str(start + k) for start in (0, 1) for k in range(len(rows))]
        layout = replace(layout, numbered=first in (counted[: len(rows)], counted[len(rows) :]))
    if (
        len(rows[0]) > 1
        and not is_label(rows[0][-1])
        and is_label(first[0])
        and is_video(Path(rows[0][-1]).name)
    ):
        layout = replace(layout, label_first=True)
    return layout
