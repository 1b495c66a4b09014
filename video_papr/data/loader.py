"""Decoding in the background: samples in the order of the dataset, the same for every number of workers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from ..core.errors import ConfigError
from ..core.forks import start_method
from .datasets import VideoDataset, VideoSample, in_groups
from .workers import SupervisedDecoder

TIMEOUT_S = 120.0


def iter_samples(
    dataset: VideoDataset,
    *,
    indices: Sequence[int] | None = None,
    videos_per_batch: int = 1,
    workers: int = 0,
    pin_memory: bool = False,
    timeout_s: float = TIMEOUT_S,
    prefetch: int = 0,
    turns: int = 0,
) -> Iterator[list[VideoSample]]:
    """Yields lists of `videos_per_batch` samples, in order; the last may be shorter, and so are those of large frames.

    With `dataset.memory_mb`, decoded frames take about so much at most: half of it for the video that comes next, a
    quarter for those that wait behind it, and a quarter for the list. A process that decodes may take as much in all.

    Args:
        indices: which of its videos, in this order; None: all.
        videos_per_batch: videos in a list. They may differ in size, so they are not stacked.
        workers: processes that decode; 0 decodes in this one, where nobody watches over it. Two videos per worker
            are on the way or wait in memory, besides those of the list that is being filled.
        pin_memory: hands frames over in page-locked memory; has no effect without CUDA.
        timeout_s: seconds after which a process that decodes a video is given up, and another tries once more.
        prefetch: videos that wait in memory where that is more than one per worker. A reader that takes a batch and
            then works on it for a while finds the next one whole if they are as many; with fewer, decoders stand
            still while it works, and it while they catch up.
        turns: videos that the reader takes before it works on them, on the cores of the processes: these stand still
            then. 0: they go on.

    Raises ConfigError: a count is out of range.
    """
    if videos_per_batch < 1:
        raise ConfigError(f"runtime.batch_size={videos_per_batch} must be at least 1")
    if workers < 0:
        raise ConfigError(f"runtime.workers={workers} must be at least 0")
    wanted = range(len(dataset)) if indices is None else indices
    ahead: dict[str, Any] = {"prefetch": max(prefetch, videos_per_batch), "turns": turns}
    samples: Iterator[VideoSample] = (dataset[index] for index in wanted)
    if workers and len(wanted):
        samples = _supervised(dataset, wanted, workers=workers, timeout_s=timeout_s, **ahead)
    full = math.inf if dataset.memory_mb is None else dataset.memory_mb * 2**18
    return _batches(samples, videos_per_batch, full, pin_memory and torch.cuda.is_available())


def _supervised(dataset: VideoDataset, indices: Iterable[int], **options: Any) -> Iterator[VideoSample]:
    with SupervisedDecoder(dataset, start_method=start_method(), **options) as decoder:
        yield from decoder.samples(indices)


def _batches(
    samples: Iterator[VideoSample], size: int, full: float, pin_memory: bool
) -> Iterator[list[VideoSample]]:
    """`in_groups`; the processes behind `samples` end with it."""
    try:
        yield from in_groups(map(VideoSample.pin_memory, samples) if pin_memory else samples, size, full)
    finally:
        samples.close()  # type: ignore[attr-defined]  # now, not when the garbage is collected
