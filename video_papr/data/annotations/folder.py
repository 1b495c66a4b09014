"""Class folders: root/<class>/<video>."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...core.errors import DataError
from .classes import class_lookup, unknown_class
from .files import (
    IMAGE_EXTENSIONS,
    SPLITS,
    VIDEO_EXTENSIONS,
    is_junk,
    is_split,
    is_video,
    passed_over_line,
    videos_below,
)
from .records import OnInvalid, VideoList, VideoRecord, checked_root, refuse, some


def read_folder(
    root: Path | str,
    *,
    class_names: Sequence[str] | None = None,
    on_invalid: OnInvalid = refuse,
    images: bool = False,
) -> VideoList:
    """Reads `root/<class>/**/<video>`: every directory in `root` is a class, videos may lie in directories below it.

    Labels count the class directories in sorted order, those without videos included, unless `class_names`
    gives the order. Names then match regardless of case and punctuation. Hidden names, and folders that systems leave
    (__MACOSX, @eaDir, lost+found), are passed over. With `images`, images are listed instead of videos.

    Raises:
        DataError: `root` is absent or no directory, holds no video, or holds splits instead of classes.
        whatever `on_invalid` raises: videos outside of class directories, a class directory that is not in
            `class_names`. They are left out when it returns.
    """
    root = checked_root(root)
    extensions, what = (IMAGE_EXTENSIONS, "image") if images else (VIDEO_EXTENSIONS, "video")
    directories = class_directories(root)
    if class_names is None or not any(class_lookup(class_names)(name) is not None for name in directories):
        check_splits(root, directories)
    stray = sorted(
        entry.name for entry in root.iterdir() if entry.is_file() and is_video(entry.name, extensions)
    )
    if stray:
        on_invalid(
            f"{root}: {len(stray)} {what}s lie outside of class directories (first: {stray[0]}); "
            f"expected root/<class>/<{what}>"
        )
    names = tuple(directories) if class_names is None else tuple(class_names)
    label_of = class_lookup(names)
    records: list[VideoRecord] = []
    passed_over: Counter[str] = Counter()
    for number, name in enumerate(directories):
        label = number if class_names is None else label_of(name)
        if label is None:
            on_invalid(f"{root / name}: {unknown_class(name, names)}")
            continue
        records += [
            VideoRecord(path, label, path.relative_to(root).as_posix())
            for path in videos_below(root / name, extensions, passed_over)
        ]
    if not records:
        raise DataError(
            f"{root}: no {what}s found; expected root/<class>/<{what}>, with {some(sorted(extensions))}"
            + (f". {line}" if (line := passed_over_line("below it", passed_over)) else "")
        )
    said = [passed_over_line(str(root), passed_over)]
    if class_names is None and all(map(str.isdecimal, names)) and list(names) != sorted(names, key=int):
        said.append(
            f"{root}: class folders are numbers and sorted as text, as torchvision does ({some(names)}); "
            "dataset.class_names=FILE gives another order"
        )
    return VideoList(tuple(records), names, notes=tuple(line for line in said if line))


def class_directories(root: Path) -> list[str]:
    """The names of the class directories, sorted."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not is_junk(entry.name))


def check_splits(root: Path, directories: list[str]) -> None:
    """Raises DataError when the directories are splits: their names would be learned as classes."""
    if len(directories) == 1 and not is_split(directories[0]):
        root = root / directories[0]
        directories = class_directories(root)
    if not directories or not all(map(is_split, directories)):
        return
    plain = len(directories) > 1 and all(name.casefold() in SPLITS for name in directories)
    if plain or all(class_directories(root / name) for name in directories):
        best = min(
            directories, key=lambda name: ("val" not in name.casefold(), "test" not in name.casefold())
        )
        raise DataError(
            f"dataset.root={root} holds splits ({', '.join(directories)}), not classes; "
            f"did you mean dataset.root={root / best}?"
        )
