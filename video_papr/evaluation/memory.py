"""Batches that do not fit into memory: halved once, and then reported with the size that fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..core.errors import ConfigError

Found = TypeVar("Found")
_ON_CPU = ("DefaultCPUAllocator", "Storage size calculation overflowed")


def out_of_memory(error: BaseException) -> str | None:
    """Returns torch's reason in one line if memory ran out, or would for any machine; otherwise None."""
    on_cpu = isinstance(error, RuntimeError) and any(text in str(error) for text in _ON_CPU)
    if on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    return None


class FittingBatch:
    """The number of views per forward pass, which memory may bring down once.

    Args:
        on_smaller: called with the new size when the first batch that did not fit went through in halves.
    """

    def __init__(self, size: int, on_smaller: Callable[[int], None] | None = None) -> None:
        self.asked = self.size = size
        self._on_smaller = on_smaller

    def run(self, work: Callable[[int], Found], views: int) -> Found:
        """Returns `work(size)`; when memory runs out, that with half the size, which then stays.

        Args:
            work: classifies `views` views, at most so many at a time as it is told.

        Raises ConfigError: half the size does not fit either, or this is not the first time; it names a size that does.
        """
        reason, found = _attempt(work, self.size)
        if reason is None:
            return found[0]
        size = min(self.size, views)
        if self.size == self.asked and size > 1:
            size //= 2
            again, found = _attempt(work, size)
            if again is None:
                self.size = size
                if self._on_smaller:
                    self._on_smaller(size)
                return found[0]
        while size > 1:
            size //= 2
            if _attempt(work, size)[0] is None:
                raise ConfigError(
                    f"runtime.batch_size={self.asked}: out of memory, and with half of it too ({reason}). "
                    f"runtime.batch_size={size} fits; the same command with it goes on from here."
                )
        raise ConfigError(
            f"runtime.batch_size={self.asked}: out of memory, even with a single view ({reason}). Use a smaller "
            "backbone, runtime.dtype=bf16, or runtime.device=cpu."
        )


def _attempt(work: Callable[[int], Found], size: int) -> tuple[str | None, list[Found]]:
    """Returns (None, [what came out]), or why memory ran out; the error is gone then, with its tensors."""
    try:
        return None, [work(size)]
    except Exception as error:
        reason = out_of_memory(error)
        if reason is None:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason, []
