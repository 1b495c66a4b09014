"""Decoding in the background: samples in the order of the dataset, the same for every number of workers."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader

from ..errors import ConfigError, VideoPaprError
from .datasets import VideoDataset, VideoSample


def iter_samples(
    dataset: VideoDataset, *, videos_per_batch: int = 1, workers: int = 0, pin_memory: bool = False
) -> Iterator[list[VideoSample]]:
    """Yields lists of `videos_per_batch` samples (the last may be shorter), in order.

    Args:
        dataset: what to read.
        videos_per_batch: videos in a list. They may differ in size, so they are not stacked.
        workers: processes that decode; 0 decodes in this one. At most 2 lists per worker wait in memory.
        pin_memory: hands frames over in page-locked memory; has no effect without CUDA.

    Raises:
        ConfigError: a count is out of range.
        VideoPaprError: a worker died, for example killed because memory ran out.
    """
    if videos_per_batch < 1:
        raise ConfigError(f"runtime.batch_size={videos_per_batch} must be at least 1")
    if workers < 0:
        raise ConfigError(f"runtime.workers={workers} must be at least 0")
    loader: DataLoader[VideoSample] = DataLoader(
        dataset,
        batch_size=videos_per_batch,
        collate_fn=list,
        num_workers=workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        multiprocessing_context=_start_method() if workers else None,
        worker_init_fn=_start_worker if workers else None,
    )
    return _iterate(loader)


def _iterate(loader: DataLoader[VideoSample]) -> Iterator[list[VideoSample]]:
    # torch installs a handler that raises a worker's death in whatever line the main thread happens to run.
    # Without it the death shows within seconds where the next samples are asked for, which is here.
    previous = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    batches = iter(loader)
    if previous is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, previous)
    death = None
    try:
        yield from batches
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        death = str(error).strip().rstrip(".")
    finally:
        # Not left to the garbage collector, which may run in a worker that is forked later.
        getattr(batches, "_shutdown_workers", lambda: None)()
    if death:
        raise VideoPaprError(
            f"a process that reads videos died ({death}); often memory ran out: "
            "lower runtime.workers or runtime.batch_size, or set runtime.workers=0"
        )


def _start_method() -> str:
    """Forking starts a worker in no time; readers are opened in the worker, after the fork, so it is safe here."""
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)  # the workers are the parallelism
