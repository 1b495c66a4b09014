"""Decoding in supervised processes: a video that crashes, hangs or bloats its decoder costs one process and two tries.

pebble's pool ends a process whose task takes too long, notices when one dies, and starts another. This module adds what
videos need: frames come back through shared memory, a process has a limit of memory and does not outlive this one, and
a failed video is tried once more.

Frames travel in anonymous files in memory (memfd) that this process makes, holds and passes on by its own entry in
/proc: whatever dies, on either side, nothing is left behind. Where there is no such thing they come through the pipe.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
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
from .decode_process import decode, start_worker

_POLL_SECONDS = 1.0
TAKES_MEMFD = hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd")


@dataclass
class _Task:
    """A video on its way: which try it is, where its frames go, and whether it may take half of all memory."""

    index: int
    future: Any
    frames: _FrameFile
    alone: bool


class _FrameFile:
    """Memory that another process fills: made here, so that it is freed here whatever happens there."""

    def __init__(self) -> None:
        self.handle = os.memfd_create("video_papr_frames") if TAKES_MEMFD else -1

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
        dataset: what to read; a process may take its `memory_mb` beyond what it starts with.
        timeout_s: seconds that one try at a video may take.
        prefetch: videos that are kept ready, for a reader that takes so many at once.
        turns: videos that a reader takes before it works on them: no process decodes meanwhile. 0: processes go on.
    """

    def __init__(
        self,
        dataset: VideoDataset,
        *,
        workers: int,
        timeout_s: float,
        start_method: str,
        prefetch: int = 0,
        turns: int = 0,
    ) -> None:
        self.room = workers + max(workers, prefetch, turns)  # one each on the way, and as many that wait
        self.turns = turns
        self.dataset, self.workers, self.timeout_s = dataset, workers, timeout_s
        self._largest = 0.0  # bytes that the videos take of late
        self._start = (dataset, dataset.memory_mb, os.getpid())
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
                room = self._room
                if self.turns:
                    room = min(room, self.turns - given % self.turns)
                while len(waiting) < room and (index := next(todo, None)) is not None:
                    waiting.append(self._begin(index))
                if not waiting:
                    return
                yield self._finish(waiting)
                given += 1
        finally:
            for task in waiting:
                task.frames.close()

    @property
    def _room(self) -> int:
        """Videos that are on the way or wait: fewer where a quarter of the memory does not hold so many."""
        if self.dataset.memory_mb is None or not self._largest:
            return self.room
        return max(1, min(self.room, int(self.dataset.memory_mb * 2**18 / self._largest)))

    def _finish(self, waiting: deque[_Task]) -> VideoSample:
        """Takes the first task, and gives its video a second try if the first one failed or needs more memory."""
        task = self._settled(waiting)
        failure = task.future.exception()
        if not _is_fault(failure):
            sample = _sample_of(task)
            self._largest = max(sample.num_bytes, sample.needed_bytes, 0.8 * self._largest)
            if not sample.needed_bytes or task.alone:
                return sample
            waiting.appendleft(self._begin(task.index, alone=True))
            return self._finish(waiting)
        waiting.appendleft(self._begin(task.index, alone=True))
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
                    waiting[place] = alone = self._begin(task.index)
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

    def _begin(self, index: int, *, alone: bool = False) -> _Task:
        """Has a video decoded: with its share of a quarter of the memory, or `alone`, the next one, with half of it."""
        frames = _FrameFile()
        memory = self.dataset.memory_mb
        allowed = None if memory is None or alone else memory * 2**18 // self._room
        job: dict[str, Any] = {
            "function": decode,
            "args": (index, frames.path, allowed),
            "timeout": self.timeout_s,
        }
        try:
            future: Any = self._pool.schedule(**job)
        except RuntimeError:  # the pool broke while nobody waited for it
            self._stop_pool()
            self._pool = self._new_pool()
            future = self._pool.schedule(**job)
        return _Task(index, future, frames, alone)

    def _reason(self, failure: BaseException | None) -> str:
        if isinstance(failure, TimeoutError):
            return f"no answer within dataset.decode_timeout_s={self.timeout_s:g}"
        if isinstance(failure, MemoryError):
            return f"out of memory (dataset.memory_mb={self._start[1] or 'null'})"
        code = getattr(failure, "exitcode", None)
        if code is None or code >= 0:
            return "its process ended" + (f" with status {code}" if code else "")
        return f"its process died of {_signal_name(-code)}"

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            self.workers, context=self._context, initializer=start_worker, initargs=self._start
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
