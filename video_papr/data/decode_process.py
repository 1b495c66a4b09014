"""Worker process: what a process does that decodes videos for `workers.SupervisedDecoder`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from .datasets import VideoDataset, VideoSample

_PR_SET_PDEATHSIG = 1

_dataset: list[VideoDataset] = []


def start_worker(dataset: VideoDataset, memory_mb: int | None, parent: int) -> None:
    """Prepares the process: limits, and an end with its parent."""
    # pebble's handler waits for Python, which a stuck decoder never gives.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
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


def decode(index: int, path: str | None, max_bytes: int | None) -> tuple[VideoSample, tuple[int, ...] | None]:
    """Reads a video; its frames go to `path`, and their shape comes back. None: they come in the sample."""
    sample = _dataset[0].read(index, max_bytes)
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
