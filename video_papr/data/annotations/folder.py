"""One directory per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...core.errors import DataError
from .records import (
    IMAGE_EXTENSIONS,
    VIDEO_EXTENSIONS,
    Complain,
    VideoList,
    VideoRecord,
    checked_root,
    is_video,
    plain_name,
    refuse,
    some,
    videos_below,
)


def read_folder(
    root: Path | str,
    *,
    class_names: Sequence[str] | None = None,
    complain: Complain = refuse,
    images: bool = False,
) -> VideoList:
    """Reads `root/<class>/**/<video>`: every directory in `root` is a class, videos may lie in directories below it.

    Labels count the class directories in sorted order, those without videos included, unless `class_names`
    gives the order. Names then match regardless of case, with "_" for blanks. Names that begin with "." are
    passed over. With `images`, images are listed instead of videos.

    Raises:
        DataError: `root` is absent or no directory, or holds no video.
        whatever `complain` raises: videos outside of class directories, a class directory that is not in
            `class_names`. They are left out when it returns.
    """
    root = checked_root(root)
    extensions, what = (IMAGE_EXTENSIONS, "image") if images else (VIDEO_EXTENSIONS, "video")
    directories = class_directories(root)
    stray = sorted(
        entry.name for entry in root.iterdir() if entry.is_file() and is_video(entry.name, extensions)
    )
    if stray:
        complain(
            f"{root}: {len(stray)} {what}s lie outside of class directories (first: {stray[0]}); "
            f"expected root/<class>/<{what}>"
        )
    names = tuple(directories) if class_names is None else tuple(class_names)
    labels = {plain_name(name): label for label, name in enumerate(names)} if class_names is not None else {}
    records = []
    for number, name in enumerate(directories):
        label = number if class_names is None else labels.get(plain_name(name))
        if label is None:
            complain(f"{root / name}: {name!r} is none of the {len(names)} classes ({some(names)})")
            continue
        records += [
            VideoRecord(path, label, path.relative_to(root).as_posix())
            for path in videos_below(root / name, extensions)
        ]
    if not records:
        raise DataError(
            f"{root}: no {what}s found; expected root/<class>/<{what}>, with {some(sorted(extensions))}"
        )
    return VideoList(tuple(records), names)


def class_directories(root: Path) -> list[str]:
    """The names of the class directories, sorted."""
    return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
