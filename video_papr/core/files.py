"""Atomic file writes, and errors of writing in one line."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from .errors import StorageError

PARTIAL = ".partial"  # how the name of a file ends that is being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HANDLES = (errno.EMFILE, errno.ENFILE)


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns a full disk, and other errors of writing `path`, into one line.

    Raises StorageError: the system could not write.
    """
    try:
        yield
    except Exception as failure:
        error = system_cause(failure, behind=True)
        if error is None:
            raise
        hint = "check the path and the disk, and run it again"
        if error.errno in FULL:
            hint = "free some space and run the same command again"
        elif error.errno in _HANDLES:
            hint = "allow more open files (ulimit -n) and run the same command again"
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path}: {reason}. What was finished before is kept; {hint}."
        ) from error


def system_cause(error: BaseException | None, *, behind: bool = False) -> OSError | None:
    """The error of the operating system that this one is, or was raised from.

    Args:
        behind: or that it was raised after: torch has an error of its own for a file half written.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or (error.__context__ if behind else None)
    return error


def atomic_write(path: Path, content: str | bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file whole or not at all: a reader never sees half of it, not even after a crash.

    Args:
        path: its folder is made if need be.
        content: text, written as UTF-8; bytes; or a function that writes into the open file. In text, bytes of names
            that are not UTF-8 (lone surrogates) become escapes such as `\\udce9`, which JSON reads back.

    Raises StorageError: the disk is full, or fails.
    """
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=PARTIAL)
        try:
            with os.fdopen(handle, "wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    content(file)
                file.flush()
                os.fsync(handle)  # else a power failure may leave the new name with nothing behind it
            os.chmod(name, 0o644)  # mkstemp makes files that only their owner can read
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


def remove_partial(directory: Path) -> None:
    """Removes what a killed process left half written in `directory`."""
    for half in directory.glob(f".*{PARTIAL}"):
        half.unlink(missing_ok=True)
