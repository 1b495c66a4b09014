"""Opens every video of a dataset and notes what it holds: in parallel, and so that a killed run can go on.

Each finished video is one line of an append-only file, keyed by path, size, time of change and kind of check. A later
run reads the lines and opens only what is new or changed. The order of the lines does not matter.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Iterator, Mapping

# TimeoutError: before Python 3.11 not the built-in one
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import VideoDecodeError
from ..core.forks import start_method
from .decoding import DECODERS, decode_clips
from .index import Probe
from .readers.packets import read_stream

# Frames of one decoding call; videos are decoded in pieces of this size.
_PIECE_BYTES = 256 * 2**20
# No video takes so long to read; a decoder that does has stopped.
STALLED_S = 1800.0

Key = tuple[str, int, int, str, str]


def probe_video(path: Path, *, check: str = "frames", decoder: str = "auto") -> Probe:
    """Reads one video; never raises for a bad one.

    Args:
        check: "frames" decodes every frame. "packets" reads every packet and decodes the first frame only: faster, but
            blind to most damage inside the stream.
    """
    size = 0
    try:
        size = os.path.getsize(path)
        digest = _sha256(path)
    except OSError as error:
        return Probe(size, "", error=f"cannot be read: {error.strerror}")
    try:
        frames, height, width, fps = (_decode_all if check == "frames" else _decode_first)(path, decoder)
    except VideoDecodeError as error:
        return Probe(size, digest, error=_without_path(str(error), path))
    stream = read_stream(path)  # it went well a moment ago, inside decode_clips
    seconds = round(stream.duration_seconds, 6)
    return Probe(size, digest, frames, round(fps, 6), seconds, width, height, stream.codec)


def _decode_first(path: Path, decoder: str) -> tuple[int, int, int, float]:
    clips = decode_clips(path, partial(_piece, start=0, length=1), decoder=decoder)
    return clips.num_video_frames, *clips.frames.shape[2:4], clips.fps


def _decode_all(path: Path, decoder: str) -> tuple[int, int, int, float]:
    frames, height, width, fps = _decode_first(path, decoder)
    piece = max(_PIECE_BYTES // (3 * height * width), 16)
    for start in range(0, frames, piece):
        clips = decode_clips(path, partial(_piece, start=start, length=piece), decoder=decoder)
    return clips.num_video_frames, height, width, fps


def _piece(num_video_frames: int, *, start: int, length: int) -> NDArray[np.int64]:
    first = min(start, num_video_frames - 1)
    return np.arange(first, min(first + length, num_video_frames))[None]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _without_path(text: str, path: Path) -> str:
    """The reason alone: the index names the video already, and must not depend on where the dataset lies."""
    prefix = f"cannot decode {path} "
    if not text.startswith(prefix):
        return text
    reason = text.removeprefix(prefix)
    for decoder in DECODERS:  # refused before a reader was asked: "(auto): reason"
        if reason.startswith(f"({decoder}): "):
            return reason.removeprefix(f"({decoder}): ")
    return reason[1:-1] if reason.startswith("(") and reason.endswith(")") else reason


def probe_videos(
    paths: Mapping[str, Path],
    progress_file: Path,
    *,
    check: str = "frames",
    decoder: str = "auto",
    workers: int = 1,
) -> Iterator[tuple[str, Probe]]:
    """Yields (name, probe) for every video: first those that an earlier run has finished, then the others as they
    come.

    Args:
        paths: name of a video -> its file.
        progress_file: what is finished, appended to.
        workers: processes; 0 reads in this one. The probes do not depend on it.
    """
    finished = _read_progress(progress_file)
    keys = {name: _key(path, check, decoder) for name, path in paths.items()}
    todo = []
    for name, path in paths.items():
        if keys[name] in finished:
            yield name, finished[keys[name]]
        else:
            todo.append((name, path))
    progress_file.parent.mkdir(parents=True, exist_ok=True)
    with progress_file.open("a+b") as file:
        if file.tell() and not _ends_with_newline(file):
            file.write(b"\n")  # a run was killed in the middle of a line
        for name, probe in _probe_all(todo, partial(probe_video, check=check, decoder=decoder), workers):
            line = json.dumps({"key": keys[name], "probe": asdict(probe)})
            file.write(line.encode() + b"\n")
            file.flush()
            yield name, probe


def _key(path: Path, check: str, decoder: str) -> Key:
    absolute = os.path.abspath(path)
    try:
        state = os.stat(path)
    except OSError:  # gone since the list was read; probing will say so
        return absolute, -1, -1, check, decoder
    return absolute, state.st_size, state.st_mtime_ns, check, decoder


def _read_progress(progress_file: Path) -> dict[Key, Probe]:
    if not progress_file.exists():
        return {}
    finished = {}
    for line in progress_file.read_bytes().splitlines():
        with suppress(ValueError, TypeError, KeyError):  # the line at which a run was killed
            stored = json.loads(line)
            finished[tuple(stored["key"])] = Probe(**stored["probe"])
    return finished


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


_Task = tuple[str, Path]


def _probe_all(tasks: list[_Task], probe: Any, workers: int) -> Iterator[tuple[str, Probe]]:
    """Runs the tasks in processes. A video that crashes its process is an answer too, and the others go on."""
    if workers == 0:
        for name, path in tasks:
            yield name, probe(path)
        return
    queue = deque(tasks)
    while queue:
        running: dict[Future[Probe], _Task] = {}
        with _pool(workers) as pool:
            try:
                while queue or running:
                    while queue and len(running) < 2 * workers:
                        running[pool.submit(probe, queue[0][1])] = queue[0]
                        queue.popleft()
                    finished = wait(running, STALLED_S, return_when=FIRST_COMPLETED).done
                    if not finished:
                        _end(pool)
                    for future in finished:
                        result = future.result()
                        yield running.pop(future)[0], result
            except BrokenProcessPool:
                pass
            finally:
                pool.shutdown(cancel_futures=True)
        for name, path in running.values():  # one of these was it
            yield name, _probe_alone(path, probe)


def _probe_alone(path: Path, probe: Any) -> Probe:
    with _pool(1) as pool:
        try:
            return pool.submit(probe, path).result(STALLED_S)
        except BrokenProcessPool:
            error = "the decoder crashed"
        except TimeoutError:
            _end(pool)
            error = f"no answer within {STALLED_S:g} s"
    return Probe(os.path.getsize(path), _sha256(path), error=error)


def _end(pool: ProcessPoolExecutor) -> None:
    """Ends the processes of a pool, which then counts as broken."""
    for process in list(pool._processes.values()):
        process.kill()


def _pool(workers: int) -> ProcessPoolExecutor:
    """The parent alone answers to Ctrl-C."""
    context, ignore = multiprocessing.get_context(start_method()), (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(workers, context, initializer=signal.signal, initargs=ignore)
