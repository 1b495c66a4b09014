"""Decoding in supervised processes: a video that crashes, hangs or bloats its decoder costs one process and two tries.

pebble's pool ends a process whose task takes too long, notices when one dies, and starts another. This module adds what
videos need: frames come back through shared memory, a process has a limit of memory and does not outlive this one, and
a failed video is tried once more, with the other reader.

Frames travel in anonymous files in memory (memfd) that this process makes, holds and passes on by its own entry in
/proc: whatever dies, on either side, nothing is left behind. Where there is no such thing they come through the pipe.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError, wait  # before Python 3.11 not the built-in one
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from pebble import ProcessExpired, ProcessPool
from torch import Tensor

from .datasets import VideoDataset, VideoSample

_POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_FILE_NAME = "video_papr_frames"
_TAKES_MEMFD = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


@dataclass
class _Task:
    """A video on its way: which try it is, and where its frames go."""

    index: int
    decoder: str
    future: Any
    frames: _FrameFile


class _FrameFile:
    """Memory that another process fills: made here, so that it is freed here whatever happens there."""

    def __init__(self) -> None:
        self.handle = os.memfd_create(_FILE_NAME) if _TAKES_MEMFD else -1

    @property
    def path(self) -> str | None:
        """Where the other process opens it; None: there is no such file."""
        return f"/proc/{os.getpid()}/fd/{self.handle}" if self.handle >= 0 else None

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """The frames as a tensor that shares the memory, which goes when the tensor goes."""
        memory = mmap.mmap(self.handle, 0)
        memory.madvise(mmap.MADV_DONTFORK)  # a process that starts later would keep it
        return torch.frombuffer(memory, dtype=torch.uint8).view(shape)

    def close(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


class SupervisedDecoder:
    """Processes that decode the videos of a dataset; a context manager.

    Args:
        dataset: what to read.
        workers: processes.
        timeout_s: seconds that one try at a video may take.
        memory_mb: MiB that a process may take beyond what it starts with; None: no limit.
        start_method: of multiprocessing.
        ahead: videos that are kept ready, for a reader that takes so many at once.
        turns: videos that a reader takes before it works on them: no process decodes meanwhile. 0: processes go on.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        workers: int,
        timeout_s: float,
        memory_mb: int | None,
        start_method: str,
        ahead: int = 0,
        turns: int = 0,
    ) -> None:
        self.room = workers + max(workers, ahead, turns)  # one each on the way, and as many that wait
        self.turns = turns
        self.dataset, self.workers, self.timeout_s = dataset, workers, timeout_s
        self._start = (dataset, memory_mb, os.getpid())
        self._context = multiprocessing.get_context(start_method)
        self._pool = self._new_pool()

    def __enter__(self) -> SupervisedDecoder:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop_pool()

    def samples(self, indices: Iterable[int]) -> Iterator[VideoSample]:
        """Yields the samples of `indices`, in that order; see `room` for how many are on the way or wait in memory."""
        todo = iter(indices)
        waiting: deque[_Task] = deque()
        given = 0
        try:
            while True:
                room = min(self.room, self.turns - given % self.turns) if self.turns else self.room
                while len(waiting) < room and (index := next(todo, None)) is not None:
                    waiting.append(self._begin(index, self.dataset.decoder))
                if not waiting:
                    return
                yield self._finish(waiting)
                given += 1
        finally:
            for task in waiting:
                task.frames.close()

    def _finish(self, waiting: deque[_Task]) -> VideoSample:
        """Takes the first task, and gives its video a second try if the first one failed."""
        task = self._settled(waiting)
        failure = task.future.exception()
        if not _is_fault(failure):
            return _sample_of(task)
        waiting.appendleft(self._begin(task.index, self._other_decoder()))
        task.frames.close()
        task = self._settled(waiting)
        again = task.future.exception()
        if not _is_fault(again):
            return _sample_of(task)
        task.frames.close()
        reasons = [self._reason(error) for error in (failure, again)]
        said = reasons[0] if reasons[0] == reasons[1] else "; then ".join(reasons)
        record = self.dataset.videos.records[task.index]
        text = f"cannot decode {record.name} ({said}; tried twice)"
        return VideoSample(task.index, record.name, record.label, None, text, 0.0, None, 0, 0.0)

    def _settled(self, waiting: deque[_Task]) -> _Task:
        """Waits for the first task and takes it out. A pool that broke is replaced, and its tasks begin again."""
        first = waiting[0]
        deadline = time.monotonic() + 2 * self.timeout_s + 60  # of pebble's own watch, in case it fails
        while not wait([first.future], _POLL_SECONDS).done:
            if not self._pool.active or time.monotonic() > deadline:
                self._stop_pool()
                break
        if not first.future.done() or isinstance(first.future.exception(), BrokenProcessPool):
            self._stop_pool()
            self._pool = self._new_pool()
            # One by one, so that whatever broke the pool shows itself, and harms no other video.
            for place, task in enumerate(waiting):
                if not task.future.done() or isinstance(task.future.exception(), BrokenProcessPool):
                    task.frames.close()
                    waiting[place] = alone = self._begin(task.index, task.decoder)
                    self._await_alone(alone)
        return waiting.popleft()

    def _await_alone(self, task: _Task) -> None:
        deadline = time.monotonic() + self.timeout_s + 60
        while not wait([task.future], _POLL_SECONDS).done:
            if not self._pool.active or time.monotonic() > deadline:
                break
        if not task.future.done() or isinstance(task.future.exception(), BrokenProcessPool):
            self._stop_pool()
            self._pool = self._new_pool()
            with suppress(Exception):
                task.future.set_exception(ProcessExpired("its process died"))

    def _begin(self, index: int, decoder: str) -> _Task:
        frames = _FrameFile()
        job: dict[str, Any] = {
            "function": _decode,
            "args": (index, decoder, frames.path),
            "timeout": self.timeout_s,
        }
        try:
            future: Any = self._pool.schedule(**job)
        except RuntimeError:  # the pool broke while nobody waited for it
            self._stop_pool()
            self._pool = self._new_pool()
            future = self._pool.schedule(**job)
        return _Task(index, decoder, future, frames)

    def _other_decoder(self) -> str:
        """Who tries the second time; a decoder that was asked for by name stays the only one."""
        return "pyav" if self.dataset.decoder == "auto" else self.dataset.decoder

    def _reason(self, failure: BaseException | None) -> str:
        if isinstance(failure, TimeoutError):
            return f"no answer within dataset.decode_timeout_s={self.timeout_s:g}"
        if isinstance(failure, MemoryError):
            return f"out of memory (dataset.decode_memory_mb={self._start[1] or 'null'})"
        code = getattr(failure, "exitcode", None)
        if code is None or code >= 0:
            return "its process ended" + (f" with status {code}" if code else "")
        return f"its process died of {_signal_name(-code)}"

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            self.workers, context=self._context, initializer=_start_worker, initargs=self._start
        )

    def _stop_pool(self) -> None:
        self._pool.stop()
        self._pool.join()


def _is_fault(failure: BaseException | None) -> bool:
    """Whether the process failed; any other error is a mistake in the code that ran in it."""
    return isinstance(failure, ProcessExpired | TimeoutError | BrokenProcessPool | MemoryError)


def _sample_of(task: _Task) -> VideoSample:
    """What a process sent, with its frames. Raises what it raised."""
    try:
        sample, shape = task.future.result()
        return sample if shape is None else replace(sample, frames=task.frames.take(shape))
    finally:
        task.frames.close()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# ---- in the process that decodes ----

_dataset: list[VideoDataset] = []


def _start_worker(dataset: VideoDataset, memory_mb: int | None, parent: int) -> None:
    signal.signal(
        signal.SIGTERM, signal.SIG_DFL
    )  # pebble's handler waits for Python, which a stuck decoder never gives
    _die_with(parent)
    _limit_memory(memory_mb)
    torch.set_num_threads(1)  # the processes are the parallelism
    _dataset[:] = [dataset]


def _die_with(parent: int) -> None:
    """Linux ends this process as soon as its parent is gone, even if a decoder is stuck."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _forget_frames() -> None:
    """Closes the frame files that were open when this process was forked: they would stay as long as it does."""
    if not _TAKES_MEMFD:
        return
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the directory itself is closed by now
            if _FILE_NAME in os.readlink(f"/proc/self/fd/{name}"):
                os.close(int(name))


def _limit_memory(memory_mb: int | None) -> None:
    """Sets a limit on private memory, above what the process has now; and never writes a core file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if memory_mb is None:
        return
    with suppress(OSError, ValueError):
        used = 0
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmData:"):
                    used = int(line.split()[1]) * 1024
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (used + memory_mb * 2**20, hard))


def _decode(index: int, decoder: str, path: str | None) -> tuple[VideoSample, tuple[int, ...] | None]:
    """Reads a video; its frames go to `path`, and their shape comes back. None: they come in the sample."""
    sample = _dataset[0].read(index, decoder)
    start = time.perf_counter()
    if sample.frames is None or path is None or not _write(path, sample.frames):
        return sample, None
    handing_over_ms = 1000 * (time.perf_counter() - start)  # keeps this process from the next video too
    sent = replace(sample, frames=None, decode_ms=sample.decode_ms + handing_over_ms)
    return sent, tuple(sample.frames.shape)


def _write(path: str, frames: Tensor) -> bool:
    """Whether the frames went to the file in memory; they do not where /proc is closed."""
    try:
        handle = os.open(path, os.O_WRONLY)
    except OSError:
        return False
    try:
        rest = frames.contiguous().numpy().data.cast("B")
        while rest:
            rest = rest[os.write(handle, rest) :]
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
