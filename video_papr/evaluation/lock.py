"""File lock of a run directory: one run at a time writes there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from ..core.errors import ConfigError
from ..core.files import storing
from .records import DIRECTORY


@contextmanager
def hold(run_dir: Path, rank: int = 0) -> Iterator[None]:
    """Keeps every other process out of `run_dir` for as long as the body runs; a killed process lets go at once.

    Args:
        rank: those above 0 come in when rank 0 is there. It sees to it that none of an earlier run is left.

    Raises ConfigError: another process is at work there.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no lock there
        yield
        return

    def lock(file: IO[bytes]) -> None:
        try:
            # Not flock: its locks pass on to decoding processes, which may outlive a killed run by a moment.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            file.seek(0)
            holder = file.read().decode("ascii", "replace").strip() or "unknown"
            raise ConfigError(
                f"output_dir={run_dir}: process {holder} is at work there; wait for it, or give another output_dir."
            ) from None

    path = run_dir / DIRECTORY / (f"lock.{rank}" if rank else "lock")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        held = path.open("a+b", buffering=0)
    with held:  # closing it lets go
        lock(held)
        for other in () if rank else path.parent.glob("lock.*"):
            with other.open("r+b") as file:
                lock(file)
        with suppress(OSError):  # a full disk shows where it matters
            held.truncate(0)
            held.write(f"{os.getpid()}\n".encode())
        yield
