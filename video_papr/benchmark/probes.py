"""What a run tells about its stages: milliseconds, memory, arithmetic.

A staged run is a function (frames, mark) that calls `mark(stage)` when a stage has just ended, as `Pipeline.forward`
does. A probe is such a `mark`; the same run serves all of them.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from ..core.types import Mark

STAGES = ("score", "select", "embed", "blocks", "head", "backbone")
SCORING = ("score", "select")  # what pruning costs
Staged = Callable[[Tensor, Mark], Tensor]
"""(frames (B, T, H, W, 3) uint8, mark) -> logits (B, classes)."""

MIB = 2**20


def backbone_whole(run: Staged, frames: Tensor, mark: Mark) -> Tensor:
    """A staged run whose backbone is one stage, "backbone", as that of a compiled one is."""

    def coarse(stage: str) -> None:
        if stage not in ("embed", "blocks"):
            mark("backbone" if stage == "head" else stage)

    return run(frames, coarse)


class Clock:
    """Milliseconds of each stage: events in the device's own queue on a GPU, so that nothing waits between stages."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = [("", self._now())]

    def __call__(self, stage: str) -> None:
        self.marks.append((stage, self._now()))

    def stages_ms(self) -> dict[str, float]:
        """Milliseconds by stage, in their order; a stage that came twice is added up."""
        if self.cuda:
            torch.cuda.synchronize()
        found: dict[str, float] = {}
        for (_, before), (stage, after) in zip(self.marks, self.marks[1:], strict=False):
            ms = before.elapsed_time(after) if self.cuda else 1000 * (after - before)
            found[stage] = found.get(stage, 0.0) + ms
        return found

    def _now(self) -> Any:
        if not self.cuda:
            return perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class MemoryProbe:
    """The most memory that each stage needs above what was in use before the run, in MiB.

    On a GPU: what torch has allocated. On Linux: resident memory of the process, whose peak the kernel lets a process
    reset; elsewhere nothing is known, and the answer stays empty. Free heap is given back first, so that the
    figures do not depend on what ran before.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, float] = {}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.known = self._reset()
        self.before = self._read("VmRSS") if self.known else 0.0

    def __call__(self, stage: str) -> None:
        if not self.known:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        peak = max(0.0, self._read("VmHWM") - self.before)
        self.peaks[stage] = max(peak, self.peaks.get(stage, 0.0))
        self._reset()

    def _reset(self) -> bool:
        """Starts a new peak at what is in use; False where that cannot be done."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        _give_back_heap()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak, VmHWM
        except OSError:
            return False
        return True

    def _read(self, field: str) -> float:
        if self.device.type == "cuda":
            read = torch.cuda.memory_allocated if field == "VmRSS" else torch.cuda.max_memory_allocated
            return read(self.device) / MIB
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
        return 0.0


def _give_back_heap() -> None:
    """Hands freed memory back to the system where the C library can (glibc)."""
    name = ctypes.util.find_library("c")
    trim = getattr(ctypes.CDLL(name), "malloc_trim", None) if name else None
    if trim is not None:
        trim(0)
