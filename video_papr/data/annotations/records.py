"""What the readers return, and what they share: finding videos, reading labels, complaining."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...core.errors import DataError

VIDEO_EXTENSIONS = frozenset(
    [".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv"]
)

IMAGE_EXTENSIONS = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)

Complain = Callable[[str], None]
"""Takes one line about a wrong entry of a list. `refuse` raises it; a function that returns skips the entry."""


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
        unreadable: videos that are known to be damaged (see `data/index.py`): name -> reason. Nobody tries to
            decode them again.
    """

    records: tuple[VideoRecord, ...]
    class_names: tuple[str, ...] | None
    missing: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)


def refuse(text: str) -> None:
    """The `Complain` that stops at the first wrong entry. Raises DataError."""
    raise DataError(text)


class Listing:
    """Collects the entries of a list, each path once.

    Args:
        source: the list, for messages.
        complain: called for an entry whose path is there already.
    """

    def __init__(self, source: str, complain: Complain) -> None:
        self._source, self._complain = source, complain
        self._seen: dict[str, tuple[str, int]] = {}
        self._entries: list[tuple[str, Path, int]] = []

    def add(self, place: str, name: str, path: Path, label: int) -> None:
        """Adds a video under the name that users see; `place` says where it is listed ("list.csv:3")."""
        key = os.path.normpath(path)
        if key in self._seen:
            where, other = self._seen[key]
            again = "" if other == label else f" with another label ({other}, here {label})"
            self._complain(f"{place}: {name!r} is listed already at {where}{again}")
            return
        self._seen[key] = place, label
        self._entries.append((name, path, label))

    def finish(self, root: Path, class_names: tuple[str, ...] | None, *, expected: str) -> VideoList:
        """Sorts the videos into those that are on disk and those that are missing.

        Raises:
            DataError: there is no entry (`expected` says what there should be), or no video exists.
        """
        if not self._entries:
            raise DataError(f"{self._source}: the list is empty; expected {expected}")
        records, missing = [], []
        for name, path, label in self._entries:
            found = find_video(path)
            if found is None:
                missing.append(name)
            else:
                records.append(VideoRecord(found, label, name if found == path else _below(found, root)))
        if not records:
            raise DataError(
                f"{self._source} under root {root}: none of the {len(missing)} listed videos exists "
                f"(first: {missing[0]})"
            )
        return VideoList(tuple(records), class_names, tuple(missing))


def inside_root(videos: VideoList, root: Path, complain: Complain) -> VideoList:
    """Leaves out the videos that lie outside `root` once all links are followed, after `complain` was told.

    Raises:
        DataError: none is left.
        whatever `complain` raises.
    """
    base = os.path.realpath(root)
    folders: dict[str, str] = {}  # following links costs a system call for each part of a path

    def real(path: Path) -> str:
        folder, name = os.path.split(os.path.abspath(path))
        if os.path.islink(path):
            return os.path.realpath(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)

    kept = []
    for record in videos.records:
        place = real(record.path)
        if os.path.commonpath([base, place]) == base:
            kept.append(record)
            continue
        complain(
            f"{record.name}: leads to {place}, outside of dataset.root={root}; "
            "dataset.allow_outside_root=true allows it"
        )
    if not kept:
        raise DataError(f"dataset.root={root}: every video lies outside of it")
    return replace(videos, records=tuple(kept))


def find_video(path: Path) -> Path | None:
    """Returns `path`, or the same name with another extension of a video: data sets are often re-encoded; or None."""
    if path.exists():
        return path
    if path.suffix.lower() not in VIDEO_EXTENSIONS:
        return None
    others = (path.with_suffix(extension) for extension in sorted(VIDEO_EXTENSIONS))
    return next((other for other in others if other.exists()), None)


def label_parser(num_classes: int | None, names: Sequence[str] | None) -> Callable[[str], int]:
    """Returns a function from text to label; it raises ValueError with the reason."""
    by_name = {plain_name(name): label for label, name in enumerate(names or ())}

    def parse(text: str) -> int:
        if plain_name(text) in by_name:
            return by_name[plain_name(text)]
        try:
            label = int(text)
        except ValueError:
            allowed = (
                "an integer from 0" if not names else f"an integer or one of the class names ({some(names)})"
            )
            raise ValueError(f"label {text!r} must be {allowed}") from None
        if label < 0 or (num_classes is not None and label >= num_classes):
            allowed = "0 or more" if num_classes is None else f"0..{num_classes - 1}"
            raise ValueError(f"label {label} is out of range, allowed: {allowed}")
        return label

    return parse


def checked_root(root: Path | str) -> Path:
    """Raises DataError unless `root` is a directory."""
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"dataset.root={root} {'is not a directory' if root.exists() else 'does not exist'}")
    return root


def read_text(path: Path, *, key: str = "dataset.annotations", what: str = "a list of videos") -> str:
    """Reads a UTF-8 file; `key` and `what` are for the messages of DataError."""
    if not path.is_file():
        raise DataError(f"{key}={path} {'is not a file' if path.exists() else 'does not exist'}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text at byte {error.start}; expected {what}") from None


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers from 1."""
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def videos_below(directory: Path, extensions: frozenset[str] = VIDEO_EXTENSIONS) -> list[Path]:
    """All files of these kinds below a directory, sorted by path; follows links to directories, each directory once."""
    found: list[Path] = []
    visited: set[str] = set()
    for place, subdirectories, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            subdirectories.clear()
            continue
        visited.add(real)
        subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
        found += [Path(place, name) for name in files if is_video(name, extensions)]
    return sorted(found)


def is_video(name: str, extensions: frozenset[str] = VIDEO_EXTENSIONS) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions


def plain_name(name: str) -> str:
    """A class name as it is compared: "_" is a blank, case plays no part."""
    return name.replace("_", " ").strip().casefold()


def some(names: Sequence[str]) -> str:
    """The first three names, for messages."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
