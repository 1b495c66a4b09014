"""UCF101: classInd.txt, trainlist01.txt and testlist01.txt to 03, as its authors hand them out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ...core.errors import DataError
from .classes import class_lookup, unknown_class
from .files import VIDEO_EXTENSIONS
from .folder import check_splits, class_directories, read_folder
from .lists import read_csv
from .names import read_class_names
from .records import Listing, OnInvalid, VideoList, checked_root, numbered_lines, read_text, refuse

_OFFICIAL_LIST = re.compile(r"(train|test)list\d*\.txt")


def read_ucf101(
    root: Path | str,
    annotations: Path | str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    on_invalid: OnInvalid = refuse,
) -> VideoList:
    """Reads UCF101.

    - `testlist01.txt` to `03`: lines of `Class/v_Class_g01_c01.avi`; `trainlist01.txt` to `03`: the same with the
      class number of classInd.txt, which counts from 1, behind. They are known by their names;
    - a text list of any other name, of paths and labels from 0: see `read_csv`;
    - without `annotations`: `root/<Class>/<video>`, all videos.

    Args:
        class_names: the 101 names; by default those of classInd.txt beside the list. In the directory layout, the
            names of the directories in the order of classInd.txt, which is alphabetical regardless of case.

    Raises:
        DataError: a file or directory is absent, the list is empty, or no video exists.
        whatever `on_invalid` raises: a line is malformed, its class is unknown or differs from its number, or a path
            is there twice. The text names file and line.
    """
    root = checked_root(root)
    if annotations is None:
        names = class_names
        if names is None:
            check_splits(root, class_directories(root))
            names = sorted(class_directories(root), key=str.casefold)
        return read_folder(root, class_names=names, on_invalid=on_invalid)
    annotations = Path(annotations)
    beside = annotations.parent / "classInd.txt"
    if class_names is None and beside.is_file():
        class_names = read_class_names(beside)
    if not _OFFICIAL_LIST.fullmatch(annotations.name.lower()):
        return read_csv(annotations, root, class_names=class_names, on_invalid=on_invalid)
    lines = numbered_lines(read_text(annotations))
    if class_names is None:
        raise DataError(
            f"{annotations}: the class names are missing; put classInd.txt beside it, or set dataset.class_names=FILE"
        )
    return _read_official(annotations, lines, root, tuple(class_names), on_invalid)


def _read_official(
    annotations: Path, lines: list[tuple[int, str]], root: Path, names: tuple[str, ...], on_invalid: OnInvalid
) -> VideoList:
    label_of = class_lookup(names)
    listing = Listing(str(annotations), on_invalid)
    for number, line in lines:
        path, _, class_number = line.partition(" ")
        class_name = PurePosixPath(path).parent.name
        if PurePosixPath(path).suffix.lower() not in VIDEO_EXTENSIONS or not class_name:
            on_invalid(f"{annotations}:{number}: expected 'Class/video.avi', got {line!r}")
            continue
        label = label_of(class_name)
        if label is None:
            on_invalid(f"{annotations}:{number}: {unknown_class(class_name, names)}")
            continue
        if class_number.strip() not in ("", str(label + 1)):
            on_invalid(
                f"{annotations}:{number}: class number {class_number.strip()!r}, but {class_name} has the number "
                f"{label + 1} in classInd.txt"
            )
            continue
        listing.add(f"{annotations}:{number}", path, root / path, label)
    return listing.finish(root, names, expected="lines of 'Class/video.avi'")
