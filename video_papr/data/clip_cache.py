"""Decoded, resized and cropped views on disk, so that the runs of a sweep decode each video once.

One file per video and recipe, `FOLDER/ab/KEY.npz`. The key is a digest of all that decides about the pixels: the file
(path, size, times, inode), the recipe (which frames, how they are resized, the decoder, the device) and the code that
does it, with the versions of its libraries. So nothing has to be invalidated: what changed has another key.

Files are renamed into place when they are whole, so any number of processes may read and write the same folder. Each
array carries a CRC-32 (of the zip format), checked when it is read. Nothing is pickled: a file cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError

# All code of this package and of its readers turns files into views; a changed line makes other keys. (A list of some
# modules once missed the readers.)
_CODE = ("*.py", "readers/*.py")
_PACKAGES = ("av", "decord", "numpy", "pillow", "torch", "torchcodec")
_OWN, _PARTIAL = re.compile(r"[0-9a-f]{64}\.npz"), ".partial-views-"
_ABANDONED_SECONDS = 3600.0  # a partial file of this age belongs to a process that died
_RESCANS = 20  # other writers are noticed after 1 / 20 of the limit


@dataclass(frozen=True)
class CachedViews:
    """The views of one video, and what is known about it.

    Attributes:
        decode_ms, preprocess_ms: what decoding it, and resizing and cropping it, took when it was done.
    """

    views: NDArray[np.uint8]  # (V, T, H, W, 3) uint8
    frame_indices: NDArray[np.int64]  # (C, T) int64
    num_video_frames: int
    fps: float
    video_size: tuple[int, int]  # (height, width) of its frames
    decode_ms: float
    preprocess_ms: float


class ClipCache:
    """A folder of views, never larger than asked for.

    When it is full, the entries go that have not been used for longest. Those that have been used since this object was
    made stay, and what finds no room is not kept: a sweep reads the same videos in the same order again, and would find
    none of them if each new one drove out the one that is needed next.

    Args:
        folder: made if it is not there.
        limit_bytes: of all files together. Each further process that writes at the same time may exceed it by a
            twentieth.
        recipe: what decides about the views beside the file: values that JSON knows, and the functions (with
            `functools.partial`) and dataclasses themselves that choose, decode and cut, so that no setting of theirs
            can be forgotten.

    Attributes:
        fault: why something could not be written, or None. A cache never ends a run.

    Raises ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, recipe: Mapping[str, Any]) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"dataset.clip_cache={folder} cannot be made: {error}") from None
        self.folder, self.limit_bytes = folder, limit_bytes
        self.recipe = json.dumps([code_version(), dict(recipe)], sort_keys=True, default=_plain)
        self.fault: str | None = None
        self._started = time.time() - 1.0  # files' clocks are coarser than this one
        self._total: int | None = None  # bytes; None: not counted yet
        self._written = 0  # since they were counted
        self._full = False  # everything there has been used in this run

    def key(self, path: Path) -> str | None:
        """Names the views of a file as it is now; None when there is no such file."""
        try:
            status = path.stat()
        except OSError:
            return None
        own = [os.path.realpath(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        return hashlib.sha256(json.dumps([self.recipe, own]).encode("utf-8", "backslashreplace")).hexdigest()

    def load(self, key: str) -> CachedViews | None:
        """The views under a key; None when there are none, or when their file is damaged, which is then removed."""
        path = self._path(key)
        try:
            with np.load(path, allow_pickle=False) as stored:
                views, indices = stored["views"], stored["frame_indices"]
                known = json.loads(str(stored["known"]))
            if views.dtype != np.uint8 or views.ndim != 5 or indices.ndim != 2:
                raise ValueError("other arrays than were written")
            entry = CachedViews(views, indices, **{**known, "video_size": tuple(known["video_size"])})
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):  # the time of its last use; a folder that may only be read serves too
            os.utime(path)
        return entry

    def store(self, key: str, entry: CachedViews) -> bool:
        """Keeps views under a key, if there is room, and says whether it did."""
        size = entry.views.nbytes + entry.frame_indices.nbytes + 4096  # at least what the file will take
        path = self._path(key)
        try:
            if not self._make_room(size):
                return False
            path.parent.mkdir(exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PARTIAL)
            unfinished = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    known = {k: v for k, v in asdict(entry).items() if k not in ("views", "frame_indices")}
                    arrays: dict[str, Any] = {"views": entry.views, "frame_indices": entry.frame_indices}
                    np.savez(file, known=np.array(json.dumps(known)), **arrays)
                written = unfinished.stat().st_size
                unfinished.replace(path)
            except BaseException:
                unfinished.unlink(missing_ok=True)
                raise
        except OSError as error:
            self.fault = f"{path}: {error.strerror or error}"
            return False
        assert self._total is not None
        self._total, self._written = self._total + written, self._written + written
        return True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npz"

    def _make_room(self, size: int) -> bool:
        """Removes the oldest entries until `size` bytes fit; False when that is not possible."""
        if size > self.limit_bytes:
            return False
        total = self._total
        if total is None or self._written > self.limit_bytes // _RESCANS:
            total = self._count(spare=size)
        elif total + size > self.limit_bytes and not self._full:
            total = self._count(spare=size)
            self._full = total + size > self.limit_bytes
        return total + size <= self.limit_bytes

    def _count(self, *, spare: int) -> int:
        """Counts the bytes that are there, and removes the oldest entries until `spare` bytes are free, if possible."""
        found: list[tuple[float, int, Path]] = []
        now = time.time()
        for path in self.folder.glob("??/*"):
            unfinished = path.name.startswith(_PARTIAL)
            if not unfinished and not _OWN.fullmatch(path.name):  # somebody else's file
                continue
            try:
                status = path.stat()
            except OSError:  # removed by another process
                continue
            if unfinished and now - status.st_mtime > _ABANDONED_SECONDS:
                with suppress(OSError):
                    path.unlink()
                continue
            found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if total + spare <= self.limit_bytes or used >= self._started:
                break
            if not path.name.startswith(_PARTIAL):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                    total -= size
        self._total, self._written = total, 0
        return total


def _plain(value: Any) -> Any:
    """What JSON lacks, in lists and objects that it knows."""
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [value.__module__, value.__qualname__]  # of a function or class; a `repr` may hold an address


@cache
def code_version() -> str:
    """A digest of the code that turns files into views, and of the versions of its libraries."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _CODE for path in Path(__file__).parent.glob(pattern)):
        digest.update(path.read_bytes())
    for package in _PACKAGES:
        try:
            digest.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:  # the extras
            continue
    return digest.hexdigest()[:16]
