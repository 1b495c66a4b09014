"""Keeps a GPU supplied: the next batch is copied, and handed over, before the answers to this one are read.

    this process   fetch 1 | launch 1 | read 0 | fetch 2 | launch 2 | read 1 | ...
    copies                  ...1...                       ...2...
    networks       ......... 0 ........|.............. 1 ..............|... 2 ...

Launching returns at once, because a GPU has a queue. Only reading answers waits, and by then the next batch is in the
queue, its videos on the way over the bus on a stream of their own.

The scorer of one batch does not run beside the backbone of another: its matrix products leave no room on a GPU, stages
could not be timed apart, and CUDA graphs share one pool of memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..data.datasets import VideoSample
from .answers import Evaluation
from .cost import StageTimes

Item = TypeVar("Item")


def behind(items: Iterable[Item], steps: int) -> Iterator[Item]:
    """The same items in the same order, each after `steps` more of them were asked for, as far as there are any.

    Where making an item launches work, and whoever reads the item waits for that work, `steps` batches are in a queue
    meanwhile. 0: items are read one by one, as they are made. Where making one fails, those before it are read first.
    """
    made: deque[Item] = deque()
    try:
        for item in items:
            made.append(item)
            if len(made) > steps:
                yield made.popleft()
    except Exception:
        yield from made
        raise
    yield from made


class Upload:
    """Copies tensors to a device; to a GPU beside its other work, if they lie in page-locked memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._copies: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, value: Tensor) -> Tensor:
        """The tensor on the device, for the current stream, which waits for it when it comes to that."""
        if self._copies is None:
            return value.to(self.device)
        networks = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            moved = value.to(self.device, non_blocking=True)
        networks.wait_stream(self._copies)
        moved.record_stream(networks)  # else the next copy would get its memory while it is still read
        return moved


@dataclass
class BatchOutput:
    """What one flow says about a batch, where the device left it, and what that took.

    probs (videos, C); kept (V, T', H', W') bool, None: all.
    """

    times: StageTimes
    probs: Tensor
    kept: Tensor | None


@dataclass
class Launched:
    """A batch that the device may still be working on; `frames` (V, T, S, S, 3) are those of `readable`, if any."""

    batch: list[VideoSample]
    part: Evaluation
    readable: list[VideoSample] = field(default_factory=list)
    frames: Tensor | None = None
    pruned: BatchOutput | None = None
    dense: BatchOutput | None = None

    def read(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Waits for the answers and adds what they took to `part`: probabilities, the dense model's, and the mask."""
        assert self.pruned is not None
        self.part.pruned.extend(self.pruned.times)
        if self.dense is not None and self.part.dense is not None:
            self.part.dense.extend(self.dense.times)
        kept, dense = self.pruned.kept, self.dense
        return (
            self.pruned.probs.cpu(),
            None if dense is None else dense.probs.cpu(),
            None if kept is None else kept.cpu(),
        )
