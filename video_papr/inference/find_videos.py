"""Finds the video files that the key `video` names: a file, a folder, a pattern or a list on stdin."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from ..core.console import warn
from ..core.errors import ConfigError, DataError
from ..core.files import storing
from ..data.annotations.files import VIDEO_EXTENSIONS, passed_over_line, videos_below

RECORDS = "predictions.jsonl"
PUNCTUATION = "!#$%&'()*+,/:;=?@[]~"  # of addresses


def find_videos(video: str | None, lines: Iterable[str], downloads: Path) -> list[str]:
    """The files that `video` names.

    Args:
        video: a file, a folder (with all below it), a pattern as in a shell (`**` reaches into folders), an address
            (http or https) of a file, or "-".
        lines: one path in each, for "-"; empty ones are passed over.
        downloads: folder that a file from an address is written into.

    Raises:
        ConfigError: `video` is None.
        DataError: there are none.
    """
    if video is None:
        raise ConfigError(
            "video is not set: video=PATH, a file, folder or pattern; video=- reads paths from stdin."
        )
    if video == "-":
        text = "".join(lines)
        ends = "\0" if "\0" in text else "\n"  # `find -print0`: names may hold line breaks
        paths = [path for line in text.split(ends) if (path := line.removesuffix("\r")).strip()]
        if not paths:
            raise DataError("video=-: stdin holds no path; give one in each line.")
        return paths
    if re.match(r"https?://", video):
        return [_download(video, downloads)]
    named = os.path.expanduser(video)
    if os.path.isfile(named):
        return [named]
    if os.path.isdir(named):
        passed_over: Counter[str] = Counter()
        found = [str(path) for path in videos_below(Path(named), passed_over=passed_over) if path.is_file()]
        line = passed_over_line(f"video={video}", passed_over)
        if not found:
            endings = ", ".join(sorted(VIDEO_EXTENSIONS))
            raise DataError(f"video={video}: no video in this folder (endings: {endings})")
        if line:
            warn(line)
        return _without_own_films(video, found)
    if re.match(r"\w+://", video):
        raise DataError(
            f"video={video}: this kind of address is not read; read its frames with a library of yours and hand them "
            "to Pipeline.stream()"
        )
    if not glob.has_magic(named):
        raise DataError(f"video={video}: no such file or folder")
    found = sorted(path for path in glob.glob(named, recursive=True) if os.path.isfile(path))
    if not found:
        raise DataError(f"video={video}: no file fits this pattern")
    return _without_own_films(video, found)


def _download(url: str, folder: Path) -> str:
    """Fetches a file, whole or not at all, with a progress bar. Raises DataError: it cannot be had."""
    from torch.hub import download_url_to_file

    name = re.sub(r"[^\w.-]+", "_", unquote(urlsplit(url).path).rpartition("/")[2], flags=re.ASCII)[-100:]
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        # Blanks and letters beyond ASCII, as a browser's address line takes them; what is quoted stays as it is.
        download_url_to_file(quote(url, safe=PUNCTUATION), str(folder / (name or "video")))
    except (OSError, HTTPException) as error:  # urllib's errors are OSErrors
        raise DataError(f"video={url}: cannot be downloaded ({error})") from None
    return str(folder / (name or "video"))


def _without_own_films(video: str, found: list[str]) -> list[str]:
    """Without the films that earlier predictions drew. Raises DataError: there is nothing else."""
    others = [path for path in found if not _is_own_film(Path(path))]
    if len(others) < len(found):
        warn(f"video={video}: {len(found) - len(others)} films that predict drew itself are passed over")
    if not others:
        raise DataError(f"video={video}: there are no other videos")
    return others


def _is_own_film(film: Path) -> bool:
    """Whether a prediction drew it; only a file that is named so, beside predictions, is opened to see."""
    from .film import is_own_film  # needs a decoder, which most runs do not at this point

    named = re.match(r"\d{3,}_", film.name) is not None and film.suffix == ".mp4"
    return named and (film.parent / RECORDS).is_file() and is_own_film(film)
