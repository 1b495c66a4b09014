"""Finding videos on disk: which files of a folder are videos, and which are passed over."""

from __future__ import annotations

import mimetypes
import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIDEO_EXTENSIONS = words(
    ".3g2 .3gp .amv .asf .av1 .avi .divx .dv .f4v .flv .gif .h263 .h264 .h265 .264 .265 .hevc .ivf .m1v "
    ".m2t .m2ts .m2v .m4v .mjpeg .mjpg .mkv .mk3d .mod .mov .mp4 .mpe .mpeg .mpg .mpv .mts .mxf .nut .obu "
    ".ogm .ogv .ogx .qt .rm .rmvb .swf .tod .tp .trp .ts .vob .vro .webm .wmv .wtv .xvid .y4m"
)
IMAGE_EXTENSIONS = words(".bmp .gif .jpeg .jpg .pgm .png .ppm .tif .tiff .webp")
# Folders that network storage, archives and operating systems leave. Those with a dot in front are hidden anyway.
_JUNK = words(
    "__macosx @eadir @tmp @recycle @recently-snapshot #recycle #snapshot lost+found $recycle.bin recycler "
    "recycled found.000 __pycache__"
) | {"system volume information", "network trash folder", "temporary items"}
SPLITS = words(
    "train training trainset val valid validate validation valset dev eval test testing testset fold"
)


def is_junk(folder: str) -> bool:
    """Whether a folder of this name holds no videos of anybody's: hidden, or left by a system."""
    return folder.startswith(".") or folder.casefold() in _JUNK


def is_split(folder: str) -> bool:
    """Whether a folder's name is that of a part of a dataset: val, videos_val, train_256, fold1."""
    return not SPLITS.isdisjoint(re.findall("[a-z]+", folder.casefold()))


def is_video(name: str, extensions: frozenset[str] = VIDEO_EXTENSIONS) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in extensions


def videos_below(
    directory: Path, extensions: frozenset[str] = VIDEO_EXTENSIONS, passed_over: Counter[str] | None = None
) -> list[Path]:
    """All files of these kinds below a directory, sorted by path; follows links to directories, each directory once.

    Args:
        passed_over: counts, by ending, the other files that may be videos; for `passed_over_line`.
    """
    found: list[Path] = []
    visited: set[str] = set()
    for place, subdirectories, files in os.walk(directory, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            subdirectories.clear()
            continue
        visited.add(real)
        subdirectories[:] = [name for name in subdirectories if not is_junk(name)]
        found += [Path(place, name) for name in files if is_video(name, extensions)]
        if passed_over is not None:
            passed_over.update(
                os.path.splitext(name)[1].lower() for name in files if _may_be_video(name, extensions)
            )
    return sorted(found)


def _may_be_video(name: str, extensions: frozenset[str]) -> bool:
    """Whether a file of another ending should be told of: not what is known as text, picture, sound or program."""
    if name.startswith(".") or is_video(name, extensions):
        return False
    kind = mimetypes.guess_type(name)[0]
    return kind is None or kind.startswith("video/")


def passed_over_line(where: str, counts: Mapping[str, int]) -> str | None:
    """One line about the files that were passed over; None: there are none."""
    if not counts:
        return None
    endings = [ending or "none" for ending in sorted(counts)]
    shown = ", ".join(endings[:8]) + (", ..." if len(endings) > 8 else "")
    return f"{where}: {sum(counts.values())} files of endings that are not read were passed over ({shown})"


class VideoFinder:
    """Finds listed videos, and those that were re-encoded with another ending; reads each folder once."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path | None:
        """Returns `path`, or the same name with another ending of a video, or with / for backslashes; or None."""
        if os.path.exists(path):  # unlike Path.exists also False for a name that is too long
            return path
        if "\\" in str(path):
            path = Path(str(path).replace("\\", "/"))
            if os.path.exists(path):
                return path
        if path.suffix.lower() not in VIDEO_EXTENSIONS:
            return None
        names = self._listing(str(path.parent)).get(path.stem, [])
        others = (path.with_name(name) for name in names)
        return next((other for other in others if os.path.exists(other)), None)

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """The videos of a folder by their names without ending."""
        if folder not in self._folders:
            stems: dict[str, list[str]] = {}
            try:
                names = sorted(os.listdir(folder))
            except (OSError, ValueError):
                names = []
            for name in names:
                if is_video(name):
                    stems.setdefault(os.path.splitext(name)[0], []).append(name)
            self._folders[folder] = stems
        return self._folders[folder]
