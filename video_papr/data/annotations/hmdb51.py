"""HMDB51: a file of flags for each class and split, as its authors hand them out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...core.errors import ConfigError, DataError
from .classes import class_lookup, unknown_class
from .folder import read_folder
from .lists import read_csv
from .records import Listing, OnInvalid, VideoList, checked_root, numbered_lines, read_text, refuse

FLAGS = {"train": "1", "test": "2"}


def read_hmdb51(
    root: Path | str,
    annotations: Path | str | None = None,
    *,
    split: str = "test",
    fold: int = 1,
    class_names: Sequence[str] | None = None,
    on_invalid: OnInvalid = refuse,
) -> VideoList:
    """Reads HMDB51.

    - a directory of files `<class>_test_split<fold>.txt` with lines of a video and a flag: 1 for training, 2 for
      testing, 0 for neither. Videos are `root/<class>/<video>`;
    - a text list of paths and labels from 0: see `read_csv`;
    - without `annotations`: `root/<class>/<video>`, all videos.

    Args:
        split: "test" or "train": which flag; for the split files.
        fold: 1, 2 or 3: which of the three splits; for the split files.
        class_names: the 51 names; by default those of the split files, in alphabetical order.

    Raises:
        ConfigError: `split` is neither "test" nor "train".
        DataError: a directory or file is absent, or no video exists.
        whatever `on_invalid` raises: a line is malformed, a class is unknown, or a path is there twice. The text names
            file and line.
    """
    root = checked_root(root)
    if annotations is None:
        return read_folder(root, class_names=class_names, on_invalid=on_invalid)
    annotations = Path(annotations)
    if not annotations.is_dir():
        return read_csv(annotations, root, class_names=class_names, on_invalid=on_invalid)
    if split not in FLAGS:
        raise ConfigError(f"dataset.split={split!r}: HMDB51's split files know {' and '.join(FLAGS)} only")
    files = _split_files(annotations, fold)
    names = tuple(files) if class_names is None else tuple(class_names)
    label_of = class_lookup(names)
    listing = Listing(str(annotations), on_invalid)
    for name, path in files.items():
        label = label_of(name)
        if label is None:
            on_invalid(f"{path}: {unknown_class(name, names)}")
            continue
        for number, line in numbered_lines(read_text(path)):
            video, _, flag = line.rpartition(" ")
            if not video.strip() or flag not in ("0", "1", "2"):
                on_invalid(
                    f"{path}:{number}: expected 'video.avi FLAG' with the flag 0, 1 or 2, got {line!r}"
                )
            elif flag == FLAGS[split]:
                relative = f"{name}/{video.strip()}"
                listing.add(f"{path}:{number}", relative, root / relative, label)
    return listing.finish(root, names, expected=f"lines with the flag {FLAGS[split]} ({split})")


def _split_files(directory: Path, fold: int) -> dict[str, Path]:
    """The split files of one fold: class name -> file, in alphabetical order."""
    pattern = re.compile(rf"(.+)_test_split{fold}\.txt")
    matches = [(pattern.fullmatch(path.name), path) for path in directory.iterdir()]
    files = {match[1]: path for match, path in matches if match is not None}
    if not files:
        raise DataError(
            f"{directory}: no files <class>_test_split{fold}.txt; see dataset.annotations and dataset.fold"
        )
    return dict(sorted(files.items()))
