"""Lists of labelled videos: a directory per class, a text file of paths and labels, or Kinetics as it is found.

Reading a list opens no video. A video that a list names but the disk lacks is kept apart in `missing`, never
dropped in silence: lists and downloads of the same dataset drift apart, and an accuracy without these counts
means nothing.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ..errors import DataError

VIDEO_EXTENSIONS = frozenset(
    [".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"]
)
_LABEL_HEADERS = frozenset(["label", "labels", "class", "class_name", "class_id", "target"])


@dataclass(frozen=True)
class VideoRecord:
    """One labelled video.

    Attributes:
        path: where the file is.
        label: index of its class, from 0.
        name: the path as users see it, relative to the root of the dataset where possible.
    """

    path: Path
    label: int
    name: str


@dataclass(frozen=True)
class VideoList:
    """The videos of a split.

    Attributes:
        records: videos that are on disk, in the order of the list.
        class_names: names in the order of the labels, or None when the list has numbers only.
        missing: names of videos that the list holds and the disk does not.
    """

    records: tuple[VideoRecord, ...]
    class_names: tuple[str, ...] | None
    missing: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)


def kinetics400_class_names() -> tuple[str, ...]:
    """The 400 names in the order of the labels 0..399, which is alphabetical."""
    text = (resources.files(__package__) / "labels" / "kinetics400.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_folder(root: Path | str, *, class_names: Sequence[str] | None = None) -> VideoList:
    """Reads `root/<class>/**/<video>`: every directory in `root` is a class, videos may lie in directories below it.

    Labels count the class directories in sorted order, those without videos included, unless `class_names`
    gives the order. Names then match regardless of case, with "_" for blanks. Names that begin with "." are
    passed over.

    Raises:
        DataError: `root` is absent or no directory, holds no video, holds videos outside of class
            directories, or has a class directory that is not in `class_names`.
    """
    root = _checked_root(root)
    directories = sorted(
        entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    )
    stray = sorted(entry.name for entry in root.iterdir() if entry.is_file() and _is_video(entry.name))
    if stray:
        raise DataError(
            f"{root}: {len(stray)} videos lie outside of class directories (first: {stray[0]}); "
            "expected root/<class>/<video>"
        )
    names = tuple(directory.name for directory in directories) if class_names is None else tuple(class_names)
    labels = {_plain_name(name): label for label, name in enumerate(names)} if class_names is not None else {}
    records = []
    for number, directory in enumerate(directories):
        label = number if class_names is None else labels.get(_plain_name(directory.name))
        if label is None:
            raise DataError(
                f"{directory}: {directory.name!r} is none of the {len(names)} classes ({_some(names)})"
            )
        records += [
            VideoRecord(path, label, path.relative_to(root).as_posix()) for path in _videos_below(directory)
        ]
    if not records:
        raise DataError(
            f"{root}: no videos found; expected root/<class>/<video>, with {_some(sorted(VIDEO_EXTENSIONS))}"
        )
    return VideoList(tuple(records), names)


def read_csv(
    annotations: Path | str,
    root: Path | str,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
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

    Raises:
        DataError: a file or directory is absent, a line is malformed, a label is out of range, a path appears
            twice, or none of the listed videos exists. The text names file and line.
    """
    root = _checked_root(root)
    names = None if class_names is None else tuple(class_names)
    parse_label = _label_parser(len(names) if names is not None else num_classes, names)
    listed: list[tuple[str, int]] = []
    first_seen: dict[str, int] = {}
    for number, path, label_text in _split_lines(Path(annotations), parse_label):
        place = f"{annotations}:{number}"
        try:
            label = parse_label(label_text)
        except ValueError as error:
            raise DataError(f"{place}: {error}") from None
        key = os.path.normpath(root / path)
        if key in first_seen:
            raise DataError(f"{place}: {path!r} is listed already on line {first_seen[key]}")
        first_seen[key] = number
        listed.append((path, label))
    if not listed:
        raise DataError(f"{annotations}: the list is empty; expected lines of a path and a label")
    return _existing(listed, lambda path: root / path, names, f"{annotations} under root {root}")


def read_kinetics(
    root: Path | str, annotations: Path | str | None = None, *, class_names: Sequence[str] | None = None
) -> VideoList:
    """Reads Kinetics in any of the shapes it is found in.

    - without `annotations`: `root/val/<class>/<video>` if there is a directory `val`, else
      `root/<class>/<video>`;
    - the lists of VideoMAE and SlowFast: lines of a path and a label from 0, see `read_csv`;
    - the official table, with the columns label (a name), youtube_id, time_start and time_end. Its videos are
      `<youtube_id>_<start>_<end>` with six digits each, or `<youtube_id>`, anywhere below `root`.

    Args:
        root: directory of the videos.
        annotations: the list, or None for the directory layout.
        class_names: the 400 names of Kinetics-400 by default.

    Raises:
        DataError: as `read_folder` and `read_csv`.
    """
    names = kinetics400_class_names() if class_names is None else tuple(class_names)
    if annotations is None:
        root = _checked_root(root)
        return read_folder(root / "val" if (root / "val").is_dir() else root, class_names=names)
    header = _read_text(Path(annotations)).lower().partition("\n")[0]
    if "youtube_id" in header:
        return _read_official_kinetics(Path(annotations), _checked_root(root), names)
    return read_csv(annotations, root, class_names=names)


def _read_official_kinetics(annotations: Path, root: Path, names: tuple[str, ...]) -> VideoList:
    parse_label = _label_parser(len(names), names)
    on_disk = {path.stem: path for path in _videos_below(root)}
    listed: list[tuple[str, int]] = []
    paths: dict[str, Path] = {}
    for number, row in enumerate(csv.DictReader(_read_text(annotations).split("\n")), start=2):
        try:
            video = row["youtube_id"]
            name = f"{video}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
            label = parse_label(row["label"])
        except (KeyError, TypeError):
            raise DataError(
                f"{annotations}:{number}: expected the columns label, youtube_id, time_start and time_end"
            ) from None
        except ValueError as error:
            raise DataError(f"{annotations}:{number}: {error}") from None
        if name in paths:
            raise DataError(f"{annotations}:{number}: {name!r} is listed twice")
        paths[name] = on_disk.get(name) or on_disk.get(video) or root / f"{name}.mp4"
        listed.append((name, label))
    if not listed:
        raise DataError(f"{annotations}: the table has no rows")
    videos = _existing(listed, paths.__getitem__, names, f"{annotations} under root {root}")
    records = tuple(VideoRecord(r.path, r.label, r.path.relative_to(root).as_posix()) for r in videos.records)
    return VideoList(records, names, videos.missing)


def _existing(
    listed: list[tuple[str, int]], locate: Callable[[str], Path], names: tuple[str, ...] | None, source: str
) -> VideoList:
    """Sorts listed videos into those that are on disk and those that are missing."""
    records, missing = [], []
    for name, label in listed:
        path = locate(name)
        if path.exists():
            records.append(VideoRecord(path, label, name))
        else:
            missing.append(name)
    if not records:
        raise DataError(f"{source}: none of the {len(missing)} listed videos exists (first: {missing[0]})")
    return VideoList(tuple(records), names, tuple(missing))


def _split_lines(annotations: Path, parse_label: Callable[[str], int]) -> Iterator[tuple[int, str, str]]:
    """Yields (line number, path, label as text) for every line that is not blank, without the header."""
    lines = [
        (number, line.strip()) for number, line in enumerate(_read_text(annotations).split("\n"), start=1)
    ]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        return
    comma = "," in lines[0][1] and _separates(lines[0][1], parse_label)
    for position, (number, line) in enumerate(lines):
        path, label = _split(line, comma)
        if position == 0 and label.lower() in _LABEL_HEADERS:
            continue
        if not path or not label:
            expected = "path,label" if comma else "path label"
            raise DataError(f"{annotations}:{number}: expected '{expected}', got {line!r}")
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


def _label_parser(num_classes: int | None, names: tuple[str, ...] | None) -> Callable[[str], int]:
    """Returns a function from text to label; it raises ValueError with the reason."""
    by_name = {_plain_name(name): label for label, name in enumerate(names or ())}

    def parse(text: str) -> int:
        if _plain_name(text) in by_name:
            return by_name[_plain_name(text)]
        try:
            label = int(text)
        except ValueError:
            allowed = (
                "an integer from 0" if not names else f"an integer or one of the class names ({_some(names)})"
            )
            raise ValueError(f"label {text!r} must be {allowed}") from None
        if label < 0 or (num_classes is not None and label >= num_classes):
            allowed = "0 or more" if num_classes is None else f"0..{num_classes - 1}"
            raise ValueError(f"label {label} is out of range, allowed: {allowed}")
        return label

    return parse


def _checked_root(root: Path | str) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"dataset.root={root} {'is not a directory' if root.exists() else 'does not exist'}")
    return root


def _read_text(annotations: Path) -> str:
    if not annotations.is_file():
        what = "is not a file" if annotations.exists() else "does not exist"
        raise DataError(f"dataset.annotations={annotations} {what}")
    try:
        return annotations.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{annotations}: no UTF-8 text at byte {error.start}; expected a list of videos"
        ) from None


def _videos_below(directory: Path) -> list[Path]:
    """All videos below a directory, sorted by path; follows links to directories, each directory once."""
    found: list[Path] = []
    visited: set[str] = set()
    for place, subdirectories, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            subdirectories.clear()
            continue
        visited.add(real)
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        found += [Path(place, name) for name in files if _is_video(name)]
    return sorted(found)


def _is_video(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS


def _plain_name(name: str) -> str:
    return name.replace("_", " ").strip().casefold()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
