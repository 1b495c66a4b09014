"""Video lists: what the readers of annotations return, and what they share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...core.errors import DataError
from ...core.escape import printable, shorten
from ...core.file_kinds import file_kind
from .classes import class_lookup
from .files import VideoFinder

OnInvalid = Callable[[str], None]
"""Takes one line about a wrong entry of a list. `refuse` raises it; a function that returns skips the entry."""


@dataclass(frozen=True)
class VideoRecord:
    """One labelled video.

    Attributes:
        name: the path as users see it, relative to the root of the dataset where possible. Bytes that are not UTF-8 are
            shown as escapes, so that it can be written anywhere; `path` keeps them.
    """

    path: Path  # where the file is
    label: int  # index of its class, from 0
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.encode("utf-8", "backslashreplace").decode())


@dataclass(frozen=True)
class VideoList:
    """The videos of a split.

    Attributes:
        class_names: names in the order of the labels, or None when the list has numbers only.
        unreadable: videos that are known to be damaged (see `data/index.py`): name -> reason. Nobody tries to decode
            them again.
    """

    records: tuple[VideoRecord, ...]  # videos that are on disk, in the order of the list
    class_names: tuple[str, ...] | None
    missing: tuple[str, ...] = ()  # names of videos that the list holds and the disk does not
    unreadable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a user should be told about the list, one line each

    def __len__(self) -> int:
        return len(self.records)


def refuse(text: str) -> None:
    """The `OnInvalid` that stops at the first wrong entry. Raises DataError."""
    raise DataError(text)


class Listing:
    """Collects the entries of a list, each path once. `on_invalid`: called for an entry whose path is there already."""

    def __init__(self, source: str, on_invalid: OnInvalid) -> None:
        self._source, self._on_invalid = source, on_invalid
        self._seen: dict[str, tuple[str, int]] = {}
        self._entries: list[tuple[str, Path, int]] = []

    def add(self, place: str, name: str, path: Path, label: int) -> None:
        """Adds a video under the name that users see; `place` says where it is listed ("list.csv:3")."""
        key = os.path.normpath(path)
        if key in self._seen:
            where, other = self._seen[key]
            again = "" if other == label else f" with another label ({other}, here {label})"
            self._on_invalid(f"{place}: {name!r} is listed already at {where}{again}")
            return
        self._seen[key] = place, label
        self._entries.append((name, path, label))

    def finish(self, root: Path, class_names: tuple[str, ...] | None, *, expected: str) -> VideoList:
        """Sorts the videos into those that are on disk and those that are missing.

        Raises DataError: there is no entry (`expected` says what there should be), or no video exists.
        """
        if not self._entries:
            raise DataError(f"{self._source}: the list is empty; expected {expected}")
        records, missing = [], []
        finder = VideoFinder()
        for name, path, label in self._entries:
            found = finder.find(path)
            if found is None:
                missing.append(name)
            else:
                if found != path:
                    name = found.relative_to(root).as_posix() if found.is_relative_to(root) else str(found)
                records.append(VideoRecord(found, label, name))
        if not records:
            raise DataError(
                f"{self._source} under root {root}: none of the {len(missing)} listed videos exists "
                f"(first: {short(missing[0])})"
            )
        notes = self._check_labels(root, class_names or ())
        return VideoList(tuple(records), class_names, tuple(missing), notes=notes)

    def _check_labels(self, root: Path, class_names: Sequence[str]) -> tuple[str, ...]:
        """Compares labels with the folders of the videos, where these are names of classes.

        A list that counts in another order than the weights, or from 1, gives accuracies near zero and no error.
        When most folders name another class the list is invalid; when few do, or no label is 0, a note says so.
        """
        label_of, wrong, known = class_lookup(class_names), [], 0
        for name, path, label in self._entries:
            folder = label_of(path.parent.name) if path.parent != root else None
            if folder is not None:
                known += 1
                wrong += [(name, label)] if folder != label else []
        if wrong:
            name, label = wrong[0]
            line = (
                f"{self._source}: the folder of {len(wrong)} of {known} videos names another class than its label "
                f"(first: {short(name)}: label {label} is {class_names[label]!r}); "
                "the list counts in another order than the class names, or from 1"
            )
            if 2 * len(wrong) > known:
                self._on_invalid(line)
            return (line,)
        labels = {label for _, _, label in self._entries}
        if class_names and not known and labels == set(range(1, len(class_names))) and len(labels) > 1:
            return (f"{self._source}: no video has the label 0; does the list count from 1?",)
        return ()


def inside_root(videos: VideoList, root: Path, on_invalid: OnInvalid) -> VideoList:
    """Leaves out the videos that lie outside `root` once all links are followed, after `on_invalid` was told.

    Raises:
        DataError: none is left.
        whatever `on_invalid` raises.
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
        on_invalid(
            f"{record.name}: leads to {place}, outside of dataset.root={root}; "
            "dataset.allow_outside_root=true allows it"
        )
    if not kept:
        raise DataError(f"dataset.root={root}: every video lies outside of it")
    return replace(videos, records=tuple(kept))


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
    kind = file_kind(path) or ""
    if kind.startswith(("a Git", "an HTML", "an XML")):  # what a failed download leaves
        raise DataError(f"{path}: expected {what}; it is {kind}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text at byte {error.start}; expected {what}") from None


def numbered_lines(text: str) -> list[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers from 1."""
    lines = enumerate(text.split("\n"), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def short(text: str, limit: int = 100) -> str:
    """Text of a list, for messages: a line may hold anything."""
    return shorten(printable(text), limit)


def some(names: Sequence[str]) -> str:
    """The first three names, for messages."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
