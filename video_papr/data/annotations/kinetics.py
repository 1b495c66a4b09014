"""Kinetics-400 in the shapes it is found in."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from .classes import label_parser
from .files import videos_below
from .folder import read_folder
from .lists import read_csv
from .records import Listing, OnInvalid, VideoList, checked_root, read_text, refuse


def kinetics400_class_names() -> tuple[str, ...]:
    """The 400 names in the order of the labels 0..399, which is alphabetical."""
    text = (resources.files("video_papr.data") / "labels" / "kinetics400.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_kinetics(
    root: Path | str,
    annotations: Path | str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    on_invalid: OnInvalid = refuse,
) -> VideoList:
    """Reads Kinetics in any of the shapes it is found in.

    - without `annotations`: `root/val/<class>/<video>` if there is a directory `val` (or validation, test), else
      `root/<class>/<video>`;
    - the lists of VideoMAE and SlowFast: lines of a path and a label from 0, see `read_csv`;
    - the official table, with the columns label (a name), youtube_id, time_start and time_end. Its videos are
      `<youtube_id>_<start>_<end>` with six digits each, or `<youtube_id>`, anywhere below `root`.

    Args:
        class_names: the 400 names of Kinetics-400 by default.

    Raises DataError: as `read_folder` and `read_csv`.
    """
    names = kinetics400_class_names() if class_names is None else tuple(class_names)
    if annotations is None:
        root = checked_root(root)
        splits = (root / name for name in ("val", "validate", "validation", "test"))
        folder = next((split for split in splits if split.is_dir()), root)
        return read_folder(folder, class_names=names, on_invalid=on_invalid)
    if "youtube_id" in read_text(Path(annotations)).lower().partition("\n")[0]:
        return _read_official_kinetics(Path(annotations), checked_root(root), names, on_invalid)
    return read_csv(annotations, root, class_names=names, on_invalid=on_invalid)


def _read_official_kinetics(
    annotations: Path, root: Path, names: tuple[str, ...], on_invalid: OnInvalid
) -> VideoList:
    text = read_text(annotations)
    head = text.partition("\n")[0]
    delimiter = max(",;\t", key=head.count)
    parse_label = label_parser(len(names), names)
    on_disk = {path.stem: path for path in videos_below(root)}
    listing = Listing(str(annotations), on_invalid)
    for number, row in enumerate(csv.DictReader(text.split("\n"), delimiter=delimiter), start=2):
        try:
            video = row["youtube_id"]
            name = f"{video}_{_second(row['time_start']):06d}_{_second(row['time_end']):06d}"
            label = parse_label(row["label"])
        except (KeyError, TypeError):
            on_invalid(
                f"{annotations}:{number}: expected the columns label, youtube_id, time_start and time_end"
            )
            continue
        except ValueError as error:
            on_invalid(f"{annotations}:{number}: {error}")
            continue
        found = on_disk.get(name) or on_disk.get(video)
        shown = name if found is None else found.relative_to(root).as_posix()
        listing.add(f"{annotations}:{number}", shown, found or root / f"{name}.mp4", label)
    return listing.finish(root, names, expected="a table with rows")


def _second(text: str) -> int:
    """A time in whole seconds; some tables hold it as "12.0"."""
    value = float(text)
    if not 0 <= value < 10**6:
        raise ValueError(f"time {text!r} is not a number of seconds")
    return int(value)
