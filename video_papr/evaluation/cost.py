"""What an evaluation costs: time by stage, memory, multiply-accumulates.

Time is `time.perf_counter` around a stage of a batch, taken after the device has finished its work. Decoding runs
beside the other stages, in worker processes, and is timed there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from ..benchmark.flops import count_gmacs

if TYPE_CHECKING:
    from torch import Tensor

    from ..pipeline import Pipeline

Runs = list[tuple[float, int]]
"""(milliseconds, views) of each batch."""


@dataclass
class StageTimes:
    """What each stage took, batch by batch (`decode`: video by video), and the most memory that was in use."""

    decode: Runs = field(default_factory=list)
    preprocess: Runs = field(default_factory=list)
    score: Runs = field(default_factory=list)
    backbone: Runs = field(default_factory=list)
    peak_memory_mb: float = 0.0

    def per_view_ms(self) -> dict[str, float | None]:
        """Returns the median milliseconds per view of each stage and their sum, `total`; None where nothing ran."""
        if not self.backbone:
            return dict.fromkeys(("decode", "preprocess", "score", "backbone", "total"))
        stages = {name: getattr(self, name) for name in ("decode", "preprocess", "score", "backbone")}
        medians = {
            name: median(ms / views for ms, views in runs) if runs else 0.0 for name, runs in stages.items()
        }
        return {**medians, "total": sum(medians.values())}

    def processing_seconds(self) -> float:
        """Returns the seconds spent on everything but decoding."""
        return sum(ms for runs in (self.preprocess, self.score, self.backbone) for ms, _ in runs) / 1000


@dataclass(frozen=True)
class Engine:
    """Where the networks run and in which precision. float32 means without autocast."""

    device: torch.device
    dtype: torch.dtype = torch.float32

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, and autocast if `dtype` asks for it."""
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, self.dtype, self.dtype != torch.float32),
        ):
            yield

    @contextmanager
    def timed(self, runs: Runs, views: int) -> Iterator[None]:
        """Appends what the body takes to `runs`; the device's queue is empty before and after."""
        self._wait()
        start = perf_counter()
        yield
        self._wait()
        runs.append(((perf_counter() - start) * 1000, views))

    def reset_peak_memory(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_memory_mb(self) -> float:
        """Returns the GPU's peak since the last reset; on the CPU that of the whole process (0 where unknown)."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        try:
            import resource
        except ImportError:  # Windows
            return 0.0
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (2**20 if sys.platform == "darwin" else 2**10)  # macOS counts bytes, Linux kibibytes

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def gmacs_per_view(pipeline: Pipeline, frames: Tensor) -> dict[str, float]:
    """Counts multiply-accumulates / 1e9 of one view, by part.

    Args:
        frames: (1, T, S, S, 3) uint8, any content: the count depends on shapes only.

    Returns:
        `backbone` (with the kept tokens), `scorer`, `total` of the two, and `dense` (backbone with all tokens).
    """
    dense = count_gmacs(pipeline.classify, frames, None)
    if pipeline.pruner is None:
        return {"backbone": dense, "scorer": 0.0, "total": dense, "dense": dense}
    scorer = count_gmacs(pipeline.select, frames)
    backbone = count_gmacs(pipeline.classify, frames, pipeline.select(frames))
    return {"backbone": backbone, "scorer": scorer, "total": backbone + scorer, "dense": dense}
